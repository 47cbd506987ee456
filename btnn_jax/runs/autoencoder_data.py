"""Examples for autoencoders: windows of a series or frames of an environment, split in time."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from btnn_jax import envs
from btnn_jax._errors import check_known, first_line
from btnn_jax.data import (
    PACKAGED_SERIES,
    Scale,
    Series,
    fit_scale,
    load_installed,
    load_prices,
    log_returns,
    split,
    windows,
)
from btnn_jax.data.prices import OPTIONS
from btnn_jax.data.series import is_volume
from btnn_jax.encoders import as_image, one_stream
from btnn_jax.envs.base import AnyEnvironment, batched
from btnn_jax.runs.folder import RunError
from btnn_jax.runs.sources import make_env
from btnn_jax.training.acting import choose_action, uniform_logits
from btnn_jax.training.config import AutoencoderConfig

__all__ = [
    "BARS",
    "Examples",
    "environment_frames",
    "load_examples",
    "play_randomly",
    "series_windows",
    "unused_fields",
]

BARS = ("open", "high", "low", "close")
_NUM_ENVS = 16  # that play side by side


class Examples(NamedTuple):
    """Two parts that follow each other in time."""

    title: str
    channels: tuple[str, ...]  # names of the last axis
    train: np.ndarray | jax.Array  # [N, H, W, C], signals [N, T, 1, C]
    validation: np.ndarray | jax.Array  # the same, later
    scale: Scale | None = None  # what took log returns to these numbers


def load_examples(
    source: str, config: AutoencoderConfig, *, seed: int = 0, env_params: Mapping[str, Any] | None = None
) -> Examples:
    """Reads or plays what `config` asks for.

    Args:
      source: a file that `btnn_jax.data.load_prices` reads, a series of `btnn_jax.data.PACKAGED_SERIES`, or an
        environment of `btnn_jax.envs.make`.
      config: its fields about examples.
      seed: seed of the random actions in an environment.
      env_params: parameters of the environment, or options of `load_prices`.

    Raises:
      RunError: there is no such source, or what it holds does not do; the message is one line.
      ModuleNotFoundError: the package is missing that has the series or the environment.
    """
    path = pathlib.Path(source)
    try:
        if _is_series(source):
            if source in PACKAGED_SERIES:
                if env_params:
                    raise ValueError(f"{source} is no environment: it has no parameters {dict(env_params)}")
                series = load_installed(source)
            else:
                check_known("data option", env_params or {}, OPTIONS)
                series = load_prices(path, **(env_params or {}))
            return series_windows(series, config, path.name)
        if source not in envs.names():
            envs.gymnax_names()  # says what to install where gymnax is missing
            check_known("data", [source], (*PACKAGED_SERIES, *envs.names()))
        return environment_frames(make_env(source, env_params or {}), config, seed)
    except OSError as error:
        raise RunError(f"cannot read {source}: {error.strerror or first_line(error)}") from error
    except RunError:
        raise
    except ValueError as error:
        raise RunError(first_line(error)) from error


def unused_fields(source: str) -> tuple[str, ...]:
    """The fields of `AutoencoderConfig` that say nothing about the examples of this source."""
    if _is_series(source):
        return ("frames", "stream")
    return ("columns", "window", "stride") if source in envs.names() else ()


def _is_series(source: str) -> bool:
    path = pathlib.Path(source)
    suffixes = (".csv", ".gz", ".txt", ".tsv", ".parquet", ".pq")
    is_file = os.path.isfile(path) or path.suffix.lower() in suffixes or len(path.parts) > 1
    return source in PACKAGED_SERIES or is_file


def series_windows(series: Series, config: AutoencoderConfig, name: str) -> Examples:
    """Windows of log returns, scaled by the training part's figures.

    The open, high, low and close of a bar are counted from the close before it and share one scale, so that the
    high stays above the others; any other column is counted from its own last value, and has its own scale.

    Raises:
      ValueError: a column is missing or cannot be counted in returns, or there are too few rows.
    """
    named = {column.casefold() for column in series.names}
    bars = [column for column in series.names if column.casefold() in BARS] if "close" in named else []
    chosen = config.columns or bars or [c for c in series.names if not is_volume(c)]
    selected = series.select(*chosen)
    for column, values in zip(selected.names, selected.values.T, strict=True):
        if not (values > 0).all():
            raise ValueError(
                f"{name}: {column} has zeros, which have no log return; leave it out of the columns"
            )
    is_bar = np.array([column in bars for column in selected.names])
    reference = selected.values
    if is_bar.any():
        reference = np.where(is_bar, series.select("close").values, reference)
    returns = log_returns(selected.values, reference)
    try:
        parts = split(len(returns), (1 - config.validation, config.validation), embargo=config.embargo)
        scale = fit_scale(returns[parts[0]], together=bool(is_bar.all()))
        train, validation = (
            windows(scale.apply(returns[part]).astype(np.float32), config.window, config.stride)[:, :, None]
            for part in parts
        )
    except ValueError as error:
        raise ValueError(f"{name} is too short: {first_line(error)}") from None
    return Examples(f"{config.window} steps of {name}", selected.names, train, validation, scale)


def environment_frames(env: AnyEnvironment, config: AutoencoderConfig, seed: int) -> Examples:
    """Frames that random actions see; the last ones, of all environments, are the validation part.

    Raises:
      ValueError: the environment shows no image, or too few frames are asked for.
    """
    shape = as_image(one_stream(env.observation, config.stream).shape)
    steps = -(-config.frames // _NUM_ENVS)
    try:
        parts = split(steps, (1 - config.validation, config.validation), embargo=config.embargo)
    except ValueError as error:
        raise ValueError(
            f"frames={config.frames} of {env.name} are {steps} from each of {_NUM_ENVS} environments: {error}"
        ) from None
    frames = jax.jit(lambda key: play_randomly(env, key, steps, config.stream))(jax.random.key(seed))
    train, validation = (frames[part].reshape(-1, *shape) for part in parts)
    return Examples(f"frames of {env.name}", tuple(map(str, range(shape[-1]))), train, validation)


def play_randomly(env: AnyEnvironment, key: jax.Array, steps: int, stream: str | None = None) -> jax.Array:
    """Observations of 16 environments under uniformly random actions, `[steps, 16, ...]`; pure.

    Args:
      env: one environment.
      key: consumed.
      steps: number of steps in each environment.
      stream: which of the observation's streams; None where there is one.
    """
    reset_key, key = jax.random.split(key)
    many = batched(env, _NUM_ENVS)
    state, observation = many.reset(jax.random.split(reset_key, _NUM_ENVS))
    logits = uniform_logits(env.action_depths, (_NUM_ENVS,))

    def one_step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        state, observation = carry
        act_key, env_key = jax.random.split(key)
        action = choose_action(logits, act_key, greedy=False)
        keys = jax.random.split(env_key, _NUM_ENVS)
        state, time_step = many.step(keys, state, action)
        return (state, time_step.observation), one_stream(observation, stream)

    return jax.lax.scan(one_step, (state, observation), jax.random.split(key, steps))[1]

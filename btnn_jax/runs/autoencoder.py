"""A whole run of an autoencoder on the host: examples, files, progress.

>>> result = train_autoencoder("eurusd", AutoencoderConfig(steps=2000))  # doctest: +SKIP
>>> params = load_autoencoder(result.folder).params  # doctest: +SKIP
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from btnn_jax._errors import first_line
from btnn_jax._types import PyTree
from btnn_jax.data import PACKAGED_SERIES
from btnn_jax.runs.autoencoder_data import Examples, load_examples
from btnn_jax.runs.checkpoint import Checkpoints
from btnn_jax.runs.folder import (
    CHECKPOINTS,
    Folder,
    RunError,
    create_folder,
    default_folder,
)
from btnn_jax.runs.interrupt import say_on_interrupt
from btnn_jax.runs.keys import key_of
from btnn_jax.runs.loop import LoopOptions, Program, run_loop
from btnn_jax.runs.progress import Reporter, make_reporter
from btnn_jax.runs.run import AutoencoderRun, read_autoencoder_run
from btnn_jax.runs.sources import lasting_source
from btnn_jax.training.autoencoder import Autoencoder, AutoencoderState, Metrics, make_autoencoder
from btnn_jax.training.config import AutoencoderConfig
from btnn_jax.training.modules import default_layers

__all__ = [
    "AutoencoderResult",
    "TrainedAutoencoder",
    "load_autoencoder",
    "pretrained_encoder",
    "resume_autoencoder",
    "train_autoencoder",
]


class AutoencoderResult(NamedTuple):
    """How a run ended."""

    folder: pathlib.Path
    run: AutoencoderRun
    state: AutoencoderState
    steps: int  # gradient steps in all
    seconds: float  # of training, without compilation, in all sessions of the run
    stopped: int | None  # the signal that stopped it; None if it came to its end


class TrainedAutoencoder(NamedTuple):
    """An autoencoder, what it learned, and from what."""

    run: AutoencoderRun
    examples: Examples
    autoencoder: Autoencoder
    params: PyTree


def train_autoencoder(
    data: str,
    config: AutoencoderConfig,
    *,
    seed: int = 0,
    folder: Folder | None = None,
    env_params: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
    **loop: Unpack[LoopOptions],
) -> AutoencoderResult:
    """Trains an autoencoder and keeps all about it in a folder.

    Metrics are recorded at most every `log_seconds`, with the error on the validation part, from which nothing is
    learned. A SIGINT or SIGTERM ends the run after the updates under way, with a checkpoint.

    Args:
      data: a CSV file, a series of `btnn_jax.data.PACKAGED_SERIES`, or an environment that `btnn_jax.envs.make` knows.
      config: what to learn and how.
      seed: two runs with the same seed are the same.
      folder: new or empty; None for `runs/<data>-<kind>-seed<seed>-<date-time>`.
      env_params: parameters of the environment.
      reporter: what is told of the progress; None for a bar on a terminal and lines elsewhere.
      **loop: `checkpoint_minutes`, `keep`, `log_seconds`, `max_skipped`, see `btnn_jax.runs.loop.run_loop`.

    Raises:
      RunError: the folder already holds something, the data cannot be had, or no autoencoder fits them.
      ModuleNotFoundError: a package of an extra is missing.
    """
    run = AutoencoderRun(lasting_source(data, PACKAGED_SERIES), config, seed, dict(env_params or {}))
    examples, autoencoder = _prepare(run)  # before the folder: what cannot be run leaves none
    path = create_folder(
        folder if folder is not None else default_folder(pathlib.Path(data).name, config.kind, seed),
        {
            "data": {"source": run.data, "params": dict(run.env_params)},
            "config": config.to_dict(),
            "seed": seed,
        },
    )
    return _run_program(path, run, examples, autoencoder, reporter or make_reporter(), **loop)


def resume_autoencoder(
    folder: Folder, *, reporter: Reporter | None = None, **loop: Unpack[LoopOptions]
) -> AutoencoderResult:
    """Goes on with a run from a checkpoint, as if it had never stopped; see `train_autoencoder`.

    Raises:
      RunError: the folder is not an autoencoder's run, its data cannot be had, or its checkpoint cannot be read.
    """
    path, run = pathlib.Path(folder), read_autoencoder_run(folder)
    return _run_program(path, run, *_prepare(run), reporter or make_reporter(), **loop)


def load_autoencoder(folder: Folder) -> TrainedAutoencoder:
    """Loads the autoencoder of a run from its newest checkpoint.

    Raises:
      RunError: the folder is not an autoencoder's run, its data cannot be had, or its checkpoint cannot be read.
    """
    run = read_autoencoder_run(folder)
    examples, autoencoder = _prepare(run)
    with Checkpoints(pathlib.Path(folder) / CHECKPOINTS, create=False) as checkpoints:
        state = checkpoints.restore(jax.eval_shape(autoencoder.init, jax.random.key(0)))
    return TrainedAutoencoder(run, examples, autoencoder, state.params)


def pretrained_encoder(folder: Folder) -> tuple[dict[str, Any], PyTree]:
    """The configuration and parameters that start an agent with a run's autoencoder as its encoder.

    Returns:
      Fields of `UnrealConfig`, and what `make_unreal` takes as `pretrained`.

    Raises:
      RunError: as for `load_autoencoder`, or an agent's autoencoder cannot be like this one.
    """
    trained = load_autoencoder(folder)
    config, usual = trained.run.config, AutoencoderConfig()
    for name in ("resize_method", "pad"):
        if getattr(config, name) != getattr(usual, name):
            raise RunError(
                f"an agent's autoencoder has {name} {getattr(usual, name)!r}, that of {folder} has "
                f"{getattr(config, name)!r}"
            )
    shape = trained.examples.train.shape[1:]
    fields = {
        "autoencoder": config.kind,
        "ae_layers": config.layer_config or default_layers(shape, config.kind),
        "ae_stream": config.stream,
    }
    return fields, {"encoder": {"autoencoder": trained.params}}


def _prepare(run: AutoencoderRun) -> tuple[Examples, Autoencoder]:
    examples = load_examples(run.data, run.config, seed=run.seed, env_params=run.env_params)
    shape = examples.train.shape[1:]
    try:
        autoencoder = make_autoencoder(run.config, jax.ShapeDtypeStruct(shape, examples.train.dtype))
    except ValueError as error:
        raise RunError(
            f"no autoencoder fits {run.data} with this configuration: {first_line(error)}"
        ) from error
    return examples, autoencoder


def _run_program(
    folder: pathlib.Path,
    run: AutoencoderRun,
    examples: Examples,
    autoencoder: Autoencoder,
    reporter: Reporter,
    **loop: Unpack[LoopOptions],
) -> AutoencoderResult:
    def step(
        state: AutoencoderState, train: jax.Array, validation: jax.Array
    ) -> tuple[AutoencoderState, Metrics]:
        state, metrics = autoencoder.step(state, train)
        measured = autoencoder.evaluate(state.params, validation)
        return state, metrics | {f"validation_{name}": value for name, value in measured.items()}

    inputs = (jnp.asarray(examples.train), jnp.asarray(examples.validation))
    state = jax.eval_shape(autoencoder.init, jax.random.key(0))
    program = Program(
        title=f"{examples.title}, {run.config.kind} with {autoencoder.latent} latent variables, seed {run.seed}",
        init=lambda seed: autoencoder.init(key_of(seed, "autoencoder")),
        step=step,
        state=state,
        metrics=jax.eval_shape(step, state, *inputs)[1],
        num_updates=run.config.num_updates,
        steps_per_update=run.config.steps_per_update,
        result=lambda metrics: f"validation error {metrics['validation_loss']:.4g}",
        score=lambda metrics: -metrics["validation_loss"],
        inputs=inputs,
    )
    say_on_interrupt(f"every checkpoint so far is kept; go on: btnn-jax train-ae --resume {folder}")
    outcome = run_loop(folder, program, seed=run.seed, reporter=reporter, **loop)
    say_on_interrupt(f"the trained autoencoder is kept; evaluate: btnn-jax evaluate {folder}")
    return AutoencoderResult(folder, run, *outcome)

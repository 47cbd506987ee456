"""The settings of a run of an agent or of an autoencoder, written to its folder and read back."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from btnn_jax._errors import short_repr
from btnn_jax.envs import AnyEnvironment, registration
from btnn_jax.runs.folder import CONFIG, Folder, RunError, create_folder, read_settings
from btnn_jax.runs.keys import check_seeds
from btnn_jax.training.config import AutoencoderConfig, UnrealConfig

__all__ = ["AutoencoderRun", "Run", "create_run", "is_autoencoder_run", "read_autoencoder_run", "read_run"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Run:
    """All that decides a run: the same values give the same run again, on one kind of device."""

    env: str  # a name that `btnn_jax.envs.make` knows; of an object, its own name
    config: UnrealConfig
    seed: int = 0
    env_params: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 1  # agents trained side by side in one program, from `seed` on
    pretrained: bool = False  # whether it started from parameters that it was given
    from_object: bool = False  # whether the environment is an object, which the folder does not keep
    given: AnyEnvironment | None = None  # that object

    @property
    def title(self) -> str:
        """The environment with its parameters, and the algorithm, in the field's words."""
        name = self.config.algorithm.upper()
        params = ", ".join(f"{key}={_without_folders(value)}" for key, value in self.env_params.items())
        env = f"{self.env} ({params})" if params else self.env
        return f"{env}, {f'UNREAL ({name})' if self.config.replays else name}"

    @property
    def backtested(self) -> bool:
        """Whether it is evaluated by backtests on held-out time, rather than by episodes."""
        known = None if self.from_object else registration(self.env)
        return known is not None and known.backtested


def create_run(folder: Folder, run: Run) -> pathlib.Path:
    """Makes `folder` the folder of `run`; see `create_folder`."""
    environment: dict[str, Any] = {"name": run.env, "params": dict(run.env_params)}
    if run.from_object:
        environment["object"] = True
    settings = {name: getattr(run, name) for name in ("seed", "seeds", "pretrained")}
    return create_folder(folder, {"environment": environment, "config": run.config.to_dict(), **settings})


def read_run(folder: Folder, env: AnyEnvironment | None = None) -> Run:
    """The run of an agent whose folder this is.

    Args:
      folder: the run's.
      env: the environment of a run that was started with an object.

    Raises:
      RunError: there is no such folder, or it is not one of an agent's run.
    """
    settings = read_settings(folder)
    if "data" in settings:
        raise RunError(f"{folder} is a run of train-ae; this needs a run of train")
    try:
        environment = settings["environment"]
        check_seeds(settings["seed"], settings["seeds"])
        return Run(
            env=_typed(str, environment, "name"),
            env_params=_renamed(environment["name"], _typed(dict, environment, "params")),
            config=UnrealConfig.from_dict(settings["config"]),
            seed=settings["seed"],
            seeds=settings["seeds"],
            pretrained=settings["pretrained"],
            from_object=bool(environment.get("object", False)),
            given=env,
        )
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(
            f"{pathlib.Path(folder) / CONFIG} does not describe a run of an agent: {error}"
        ) from error


@dataclass(frozen=True)
class AutoencoderRun:
    """All that decides a run: the same values give the same run again, on one kind of device."""

    data: str  # a CSV file, an installed series, or an environment
    config: AutoencoderConfig
    seed: int = 0
    env_params: Mapping[str, Any] = field(default_factory=dict)


def is_autoencoder_run(folder: Folder) -> bool:
    """Whether a run's folder is that of an autoencoder.

    Raises:
      RunError: there is no such folder, or it is not a run's.
    """
    return "data" in read_settings(folder)


def read_autoencoder_run(folder: Folder) -> AutoencoderRun:
    """The run whose folder this is.

    Raises:
      RunError: there is no such folder, or it is not one of an autoencoder's run.
    """
    settings = read_settings(folder)
    if "environment" in settings:
        raise RunError(f"{folder} is a run of train; this needs a run of train-ae")
    try:
        check_seeds(settings["seed"])
        return AutoencoderRun(
            data=_typed(str, settings["data"], "source"),
            env_params=_renamed(settings["data"]["source"], _typed(dict, settings["data"], "params")),
            config=AutoencoderConfig.from_dict(settings["config"]),
            seed=settings["seed"],
        )
    except (ValueError, TypeError, KeyError) as error:
        path = pathlib.Path(folder) / CONFIG
        raise RunError(f"{path} does not describe a run of an autoencoder: {error}") from error


def _renamed(env: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of an environment by their names of today."""
    known = registration(env)
    former = {} if known is None else known.former_params
    return {former.get(name, name): value for name, value in params.items()}


def _without_folders(value: Any) -> Any:
    """A parameter with the names alone of the files in it, which have absolute paths in a run."""
    if isinstance(value, list | tuple):
        return [_without_folders(part) for part in value]
    if isinstance(value, Mapping):
        return {key: _without_folders(part) for key, part in value.items()}
    return os.path.basename(value) if isinstance(value, str) and os.path.isabs(value) else value


def _typed(kind: type[_T], settings: Mapping[str, Any], name: str) -> _T:
    value = settings[name]
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be of type {kind.__name__}, got {short_repr(value)}")
    return value

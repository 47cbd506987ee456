"""The folder of a run: what was asked for, and where its files lie."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from btnn_jax.training.config import UnrealConfig

CONFIG = "config.json"
METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"
BACKTEST = "backtest.json"
EVENTS = "tensorboard"
CHECKPOINTS = "checkpoints"
LOCK = "lock"

Folder = str | os.PathLike[str]


class RunError(ValueError):
    """A run cannot be built, or its folder is not as it must be; the message is one line for people."""


@dataclass(frozen=True)
class Run:
    """All that decides a run: the same values give the same run again, on one kind of device."""

    env: str  # a name that `btnn_jax.envs.make` knows
    config: UnrealConfig
    seed: int = 0
    env_params: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 1  # agents trained side by side in one program, from `seed` on
    pretrained: bool = False  # whether it started from parameters that it was given

    @property
    def title(self) -> str:
        """The environment with its parameters, and the algorithm, in the field's words."""
        name = self.config.algorithm.upper()
        # Of a file the name is enough.
        values = {
            key: pathlib.Path(x).name if isinstance(x, str) else x for key, x in self.env_params.items()
        }
        params = ", ".join(f"{key}={value}" for key, value in values.items())
        env = f"{self.env} ({params})" if params else self.env
        return f"{env}, {f'UNREAL ({name})' if self.config.replays else name}"


def create_run(folder: Folder, run: Run) -> pathlib.Path:
    """Makes `folder` the folder of `run`; see `create_folder`."""
    environment = {"name": run.env, "params": dict(run.env_params)}
    settings = {name: getattr(run, name) for name in ("seed", "seeds", "pretrained")}
    return create_folder(folder, {"environment": environment, "config": run.config.to_dict(), **settings})


def create_folder(folder: Folder, settings: Mapping[str, Any]) -> pathlib.Path:
    """Makes `folder` that of a new run and writes its `config.json`: the settings, versions and the device.

    Raises:
      RunError: the folder already holds a run or other files, it cannot be written, or the settings cannot be
        kept as JSON.
    """
    path = pathlib.Path(folder)
    content = {
        **settings,
        "versions": {name: version(name) for name in ("btnn-jax", "jax", "flax", "optax")},
        "device": f"{jax.devices()[0].device_kind} ({jax.default_backend()})",
    }
    try:
        text = _json(content)
    except (TypeError, ValueError) as error:
        raise RunError(f"the run's settings cannot be written down: {first_line(error)}") from error
    try:
        _check_free(path)
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / CONFIG, text)
    except OSError as error:
        raise RunError(f"cannot use the folder {path}: {error.strerror}") from error
    return path


def lasting_source(source: Any, names: Collection[str]) -> Any:
    """What to keep of where data come from: the whole path of a file, as a run may go on from another folder.

    Args:
      source: what was asked for.
      names: words that mean something else, whatever files there are.
    """
    if isinstance(source, str | os.PathLike) and source not in names and pathlib.Path(source).is_file():
        return str(pathlib.Path(source).resolve())
    return source


def default_folder(what: str, how: str, seed: int) -> pathlib.Path:
    """`runs/<what>-<how>-seed<seed>-<date-time>`."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = re.sub(r"[^\w.-]", "_", what)
    return pathlib.Path("runs") / f"{name}-{how}-seed{seed}-{now}"


def _check_free(path: pathlib.Path) -> None:
    if (path / CONFIG).exists():
        raise RunError(f"{path} already holds a run; go on with --resume {path}, or choose another folder")
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file; choose another folder for the run")
    if path.exists() and any(path.iterdir()):
        raise RunError(f"{path} already holds other files; choose another folder for the run")


def read_run(folder: Folder) -> Run:
    """The run of an agent whose folder this is.

    Raises:
      RunError: there is no such folder, or it is not one of an agent's run.
    """
    settings = read_settings(folder)
    if "data" in settings:
        raise RunError(f"{folder} is a run of train-ae; this needs a run of train")
    try:
        environment = settings["environment"]
        return Run(
            env=environment["name"],
            env_params=environment["params"],
            config=UnrealConfig.from_dict(settings["config"]),
            seed=settings["seed"],
            seeds=settings["seeds"],
            pretrained=settings["pretrained"],
        )
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(
            f"{pathlib.Path(folder) / CONFIG} does not describe a run of an agent: {error}"
        ) from error


def read_settings(folder: Folder) -> dict[str, Any]:
    """What `create_folder` wrote.

    Raises:
      RunError: there is no such folder, or it is not a run's.
    """
    path = pathlib.Path(folder)
    if not path.is_dir():
        raise RunError(f"no run folder {path}")
    if not (path / CONFIG).is_file():
        raise RunError(f"{path} is not a run's folder: it has no {CONFIG}")
    try:
        settings = json.loads((path / CONFIG).read_text())
        if not isinstance(settings, dict):
            raise ValueError(f"it holds {type(settings).__name__}")
    except OSError as error:
        raise RunError(f"cannot read {path / CONFIG}: {error.strerror}") from error
    except ValueError as error:
        raise RunError(f"{path / CONFIG} does not describe a run: {error}") from error
    return settings


@contextlib.contextmanager
def locked(folder: Folder) -> Iterator[None]:
    """Keeps other processes from writing into a run's folder; the system lets go of it when this process ends.

    Raises:
      RunError: another process writes into it, or it cannot be written or locked.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows has no such locks
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context((pathlib.Path(folder) / LOCK).open("a"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"another process is writing into {folder}; wait for its end or stop it"
            ) from error
        except OSError as error:
            raise RunError(f"cannot lock the folder {folder}: {error.strerror}") from error
        yield


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a file whole or not at all."""
    write_text(path, _json(content))


def write_text(path: pathlib.Path, content: str) -> None:
    """Writes a file whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.write_text(content)
    new.replace(path)


def _json(content: Any) -> str:
    return json.dumps(content, indent=2) + "\n"


def version(package: str) -> str | None:
    """The installed version of a package; None where it is used from its sources."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

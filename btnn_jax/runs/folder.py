"""The folder of a run: what was asked for, and where its files lie."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax

from btnn_jax._errors import first_line

__all__ = [
    "BACKTEST",
    "CHECKPOINTS",
    "CONFIG",
    "EVALUATION",
    "EVENTS",
    "LOCK",
    "METRICS",
    "Folder",
    "RunError",
    "create_folder",
    "default_folder",
    "locked",
    "read_json",
    "read_rows",
    "read_settings",
    "version",
    "write_json",
    "write_text",
]

CONFIG = "config.json"
METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"
BACKTEST = "backtest.json"
EVENTS = "tensorboard"
CHECKPOINTS = "checkpoints"
LOCK = "lock"

Folder = str | os.PathLike[str]
Row = TypeVar("Row", bound=tuple[Any, ...])


class RunError(ValueError):
    """A run cannot be built, or its folder is not as it must be; the message is one line for people."""


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


def read_settings(folder: Folder) -> dict[str, Any]:
    """Reads the settings that `create_folder` wrote.

    Raises:
      RunError: there is no such folder, or it is not a run's.
    """
    path = pathlib.Path(folder)
    if not os.path.isdir(path):  # pathlib's own raises an error for a name that is too long
        raise RunError(f"no run folder {path}")
    if not (path / CONFIG).is_file():
        raise RunError(f"{path} is not a run's folder: it has no {CONFIG}")
    try:
        settings = read_json(path / CONFIG)
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


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
      OSError: it cannot be read.
      ValueError: it is not JSON, or nested too deeply for Python.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None


def read_rows(path: pathlib.Path, key: str, row: Callable[..., Row]) -> dict[str, Row]:
    """Reads named tuples of numbers, `{key: {name: fields}}`, from a JSON file; empty where there is no file.

    Raises:
      RunError: the file cannot be read or holds something else.
    """
    if not path.is_file():
        return {}
    try:
        rows = {name: row(**fields) for name, fields in read_json(path)[key].items()}
        if not all(isinstance(x, int | float | None) for fields in rows.values() for x in fields):
            raise ValueError("it holds values that are no numbers")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{path} does not hold {key}: {first_line(error)}") from error
    return rows


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a file whole or not at all."""
    write_text(path, _json(content))


def write_text(path: pathlib.Path, content: str) -> None:
    """Writes a file whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.write_text(content, "utf-8")
    new.replace(path)


def _json(content: Any) -> str:
    return json.dumps(content, indent=2) + "\n"


def version(package: str) -> str | None:
    """The installed version of a package; None where it is used from its sources."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

"""Environments and data by the names that a run keeps."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax

from btnn_jax import envs
from btnn_jax._errors import first_line, short_repr
from btnn_jax.envs.base import AnyEnvironment
from btnn_jax.runs.folder import RunError
from btnn_jax.runs.run import Run

__all__ = ["check_written", "describe_object", "environment_of", "lasting_source", "make_env", "opened"]


def make_env(name: str, params: Mapping[str, Any]) -> AnyEnvironment:
    """`btnn_jax.envs.make`, for people.

    Raises:
      RunError: the environment or one of its parameters is unknown or makes no sense.
    """
    try:
        env = envs.make(name, **params)
        _ = env.observation  # gymnax computes with its parameters only here, and in a step
        if params and isinstance(env, envs.gymnax.GymnaxEnvironment):
            envs.check_environment(env)
    except ValueError as error:
        raise RunError(first_line(error)) from error
    except OSError as error:  # some of gymnax's load their data, from the network at first
        raise RunError(f"{name} cannot be made: {first_line(error)}") from error
    except (TypeError, ArithmeticError) as error:  # a value's type or size is not one to compute with
        raise RunError(
            f"{name} makes no sense of its parameters {short_repr(dict(params))}: {first_line(error)}"
        ) from error
    return env


@contextlib.contextmanager
def opened(env: AnyEnvironment, hint: str = "") -> Iterator[None]:
    """Closes an environment of the host at the end of the block, and says what went wrong inside of it.

    Args:
      env: any environment.
      hint: what the error says in the end.

    Raises:
      RunError: it raised, hung or gave what it must not give.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if failure := getattr(env, "failure", None):
            raise RunError(failure + hint) from error
        raise
    finally:
        if envs.is_host(env):
            env.close()


def environment_of(run: Run) -> AnyEnvironment:
    """The environment of a run.

    Raises:
      RunError: as `make_env`; or the run was started with an object that is missing here.
    """
    if run.given is not None:
        return run.given
    if run.from_object:
        raise RunError(
            f"the environment {run.env!r} of this run was an object: pass it again, as env=..., from Python"
        )
    return make_env(run.env, run.env_params)


def describe_object(env: AnyEnvironment) -> tuple[str, dict[str, Any], AnyEnvironment | None]:
    """How a run keeps an environment that it is given as an object.

    Returns:
      `("module:Class", parameters, None)` of a dataclass of plain values that can be imported again, which makes the
      same environment; of any other its own name, no parameters and the object.
    """
    kind = type(env)
    found: Any = sys.modules.get(kind.__module__)
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    importable = kind.__module__ != "__main__" and found is kind and "." not in kind.__qualname__
    if importable and dataclasses.is_dataclass(env):
        fields = [field for field in dataclasses.fields(env) if field.init]
        params = {field.name: getattr(env, field.name) for field in fields}
        with contextlib.suppress(TypeError, ValueError):
            if json.loads(json.dumps(params, allow_nan=False)) == params:
                return f"{kind.__module__}:{kind.__qualname__}", params, None
    return str(getattr(env, "name", kind.__name__)), {}, env


def lasting_source(source: Any, names: Collection[str]) -> Any:
    """The source to store in a run's folder: the absolute path of a file, so that the run can resume from anywhere.

    Args:
      source: what was asked for; of several, a list or a dict.
      names: words that mean something else, whatever files there are.
    """
    if isinstance(source, list | tuple):
        return [lasting_source(part, names) for part in source]
    if isinstance(source, Mapping):
        return {asset: lasting_source(part, names) for asset, part in source.items()}
    if isinstance(source, str | os.PathLike) and source not in names and os.path.isfile(source):
        return str(pathlib.Path(source).resolve())
    return source


def check_written(params: Mapping[str, Any]) -> None:
    """Checks that the parameters of an environment can be written into a run's folder, to resume it by.

    Raises:
      RunError: one of them cannot be; the message says what to pass in its place.
    """
    for name, value in params.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            hint = first_line(error)
            if name == "data":
                hint = "write the prices to a file (frame.to_csv) and pass its path"
            what = f"{name}={type(value).__name__}"
            raise RunError(f"{what} cannot be written down in the run's config.json: {hint}") from error

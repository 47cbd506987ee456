"""Environments: the protocol, trading, adapters to other libraries, and probes that isolate one ability each."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from btnn_jax._errors import check_known as _check_known
from btnn_jax._errors import first_line as _first_line
from btnn_jax.envs.ale import ale_names, make_ale
from btnn_jax.envs.base import (
    AnyEnvironment,
    BatchedEnvironment,
    Environment,
    HostEnvironment,
    Registration,
    TimeStep,
    auto_reset,
    batched,
    check_environment,
    is_host,
)
from btnn_jax.envs.gymnasium import from_gymnasium, gymnasium_names, make_gymnasium
from btnn_jax.envs.gymnax import gymnax_names, make_gymnax
from btnn_jax.envs.probes import PROBES
from btnn_jax.envs.trading import make_trading

__all__ = [
    "PROBES",
    "AnyEnvironment",
    "BatchedEnvironment",
    "Environment",
    "HostEnvironment",
    "Registration",
    "Suite",
    "TimeStep",
    "ale_names",
    "auto_reset",
    "batched",
    "check_environment",
    "from_gymnasium",
    "gymnasium_names",
    "gymnax_names",
    "is_host",
    "make",
    "make_ale",
    "make_gymnasium",
    "make_gymnax",
    "make_trading",
    "names",
    "own_names",
    "registration",
    "suites",
]

_OURS = {name: Registration(probe) for name, probe in PROBES.items()} | {
    "trading": Registration(
        make_trading,
        run_params={
            "data": ("sine", "trades a generated price, data=sine (the default)"),
            "part": (
                "train",
                "learns from the first part of the time (part=train); evaluate looks at the last (test)",
            ),
        },
        former_params={
            "cash": "initial_cash",
            "episode": "episode_length",
            "skip_frame": "frame_skip",
            "stake": "unit_size",
            "stakes": "max_units",
            "target": "profit_target",
        },
        backtested=True,
    )
}


class Suite(NamedTuple):
    """A library of environments, whose names are `suite:id`."""

    make: Callable[..., AnyEnvironment]  # (id, **parameters) -> environment
    names: Callable[[], tuple[str, ...]]  # of what is installed
    text: str


_SUITES: Mapping[str, Suite] = {
    "gymnasium": Suite(make_gymnasium, gymnasium_names, "Gymnasium, stepped on the host"),
    "ale": Suite(make_ale, ale_names, "Atari games by the Arcade Learning Environment, stepped on the host"),
    "gymnax": Suite(make_gymnax, gymnax_names, "gymnax, on the device; its names need no suite before them"),
}


def suites() -> Mapping[str, Suite]:
    """The libraries of environments that `make` knows, installed or not."""
    return _SUITES


def names() -> tuple[str, ...]:
    """The names that `make` knows: the probes, trading, and gymnax's environments where gymnax is installed."""
    try:
        return (*_OURS, *gymnax_names())
    except ModuleNotFoundError:
        return tuple(_OURS)


def own_names() -> tuple[str, ...]:
    """The names of this package's own environments."""
    return tuple(_OURS)


def registration(name: str) -> Registration | None:
    """What runs of the environment `name` need to know; None where it is none of this package's."""
    return _OURS.get(name)


def make(name: str, **params: Any) -> AnyEnvironment:
    """Builds an environment by its name.

    Args:
        name: one of `names()`; `suite:id` for one of `suites()`, such as `"gymnasium:CartPole-v1"` or `"ale:pong"`; or
            `module:Class` for an environment of your own: the class, or a function, is imported and called with the
            parameters.
        **params: parameters of the environment.

    Raises:
        ValueError: the name or a parameter is unknown, or a parameter's value makes no sense.
        ModuleNotFoundError: the name may be gymnax's, but gymnax is not installed.

    >>> make("probe-memory", length=3).action_depths
    3
    """
    suite, colon, rest = name.partition(":")
    if colon and suite in _SUITES:
        return _SUITES[suite].make(rest, **params)
    if colon:
        return _imported(name, params)
    if name in _OURS:
        factory = _OURS[name].make
        _check_known(f"parameter of {name}", params, inspect.signature(factory).parameters)
        return factory(**params)
    if not name.startswith("probe-"):
        gymnax_names()  # says what to install where gymnax is missing
    _check_known("environment", [name], names())
    return make_gymnax(name, **params)


def _imported(name: str, params: dict[str, Any]) -> AnyEnvironment:
    """The environment that `module:Class` names, made and checked."""
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"environment {name!r}: cannot import {module_name!r}: {_first_line(error)}"
        ) from error
    public = [key for key in vars(module) if not key.startswith("_")]
    _check_known(f"name in the module {module_name}", [attribute], public)
    factory = getattr(module, attribute)
    if not callable(factory):
        raise ValueError(f"environment {name!r} must be a class or a function, got {type(factory).__name__}")
    try:
        inspect.signature(factory).bind(**params)
    except TypeError as error:
        raise ValueError(f"environment {name!r}: {_first_line(error)}") from error
    env: AnyEnvironment = factory(**params)
    parts = ("name", "observation", "action_depths", *(() if is_host(env) else ("reset", "step")))
    if missing := [part for part in parts if not hasattr(env, part)]:
        raise ValueError(f"environment {name!r} has no {', '.join(missing)}; see btnn_jax.envs.Environment")
    return env

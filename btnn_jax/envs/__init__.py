"""Environments: the protocol, the adapter to gymnax, and probes that isolate one ability each."""

import inspect
from typing import Any

from btnn_jax.envs.base import Environment, TimeStep, auto_reset
from btnn_jax.envs.base import check_known as _check_known
from btnn_jax.envs.gymnax import gymnax_names, make_gymnax
from btnn_jax.envs.probes import PROBES

__all__ = ["PROBES", "Environment", "TimeStep", "auto_reset", "gymnax_names", "make", "make_gymnax", "names"]


def names() -> tuple[str, ...]:
    """The names that `make` knows: the probes, and gymnax's environments where gymnax is installed."""
    try:
        return (*PROBES, *gymnax_names())
    except ModuleNotFoundError:
        return tuple(PROBES)


def make(name: str, **params: Any) -> Environment:
    """Builds an environment by its name.

    Args:
        name: one of `names()`.
        **params: parameters of the environment.

    Raises:
        ValueError: the name or a parameter is unknown, or a parameter's value makes no sense.
        ModuleNotFoundError: the name may be gymnax's, but gymnax is not installed.

    >>> make("probe-memory", length=3).action_depths
    3
    """
    if name in PROBES:
        factory = PROBES[name]
        _check_known(f"parameter of {name}", params, inspect.signature(factory).parameters)
        return factory(**params)
    if not name.startswith("probe-"):
        gymnax_names()  # says what to install where gymnax is missing
    _check_known("environment", [name], names())
    return make_gymnax(name, **params)

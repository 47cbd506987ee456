"""Errors for people: missing packages, unknown names with a suggestion, and one line of an exception."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any


def import_extra(module: str, purpose: str, extra: str = "train") -> ModuleType:
    """Imports an optional dependency, or says what to install.

    Args:
      module: dotted name of the module.
      purpose: what needs it, the subject of the error's sentence, such as `"the progress bar"`.
      extra: which of the package's extras installs it.

    Raises:
      ModuleNotFoundError: the module is missing; the message is one line.

    >>> import_extra("json", "configuration").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{purpose} needs the package {error.name!r}: pip install 'btnn-jax[{extra}]'", name=error.name
        ) from error


def check_known(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises a `ValueError` of one line about the first name of `given` that is not in `known`.

    >>> check_known("parameter of cart", ["gravty"], ["gravity", "mass"])
    Traceback (most recent call last):
    ValueError: unknown parameter of cart 'gravty'; did you mean 'gravity'?
    """
    known = sorted(known)
    for name in given:
        if name in known:
            continue
        text = str(name).lower()  # people also give numbers, lists, or None
        lower = {candidate.lower(): candidate for candidate in known}
        begun = [candidate for candidate in known if candidate.lower().startswith(text)]
        close = begun or [lower[match] for match in difflib.get_close_matches(text, lower, n=3)]
        hint = (
            f"did you mean {' or '.join(map(repr, close[:3]))}?"
            if close
            else f"known: {', '.join(known) or 'none'}"
        )
        raise ValueError(f"unknown {what} {name!r}; {hint}")


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raises a `ValueError` that names the argument, its value and the choices if `value` is none of them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def short_repr(value: Any, limit: int = 200) -> str:
    """`repr(value)`, cut off after `limit` characters.

    >>> short_repr("a" * 20, limit=5)
    "'aaaa..."
    """
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."

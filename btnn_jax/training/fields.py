"""Fields of a configuration: each with its help text, its type and its range, which are checked when one is made.

It imports no JAX, so that `--help` is fast.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
import typing
from typing import Any, Self

from btnn_jax._errors import short_repr

__all__ = ["Config", "option"]

_LARGEST = 3.4e38  # of float32
_MOST = 2**63 - 1
_SCALARS = {
    bool: ("True or False", "True or False"),
    int: ("a whole number", "whole numbers"),
    float: ("a finite number", "finite numbers"),
    str: ("a string", "strings"),
    type(None): ("None", "None"),
}
"""The types of fields in words: one value, and several."""


def option(
    default: Any,
    text: str,
    *,
    topic: str | None = None,
    choices: tuple[str, ...] | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: int = 2**31 - 1,
    **former: Any,
) -> Any:
    """A field of a `Config`.

    Args:
      default: its default.
      text: what it is, for `--help`.
      topic: title of the group that starts with this field; None goes on with the group before.
      choices: the values that it may have, besides None where the annotation allows that.
      at_least: the smallest value; of a tuple, the smallest number anywhere in it.
      at_most: the largest value.
      above: a bound that every value exceeds.
      below: a bound that no value reaches.
      most: the largest whole number anywhere in it; sizes of arrays and counters are of 32 bits.
      **former: `former=VALUE`, what an earlier version did, in whose saved configurations the field is missing; the
        default where it is not given.
    """
    bounds = {"at_least": at_least, "at_most": at_most, "above": above, "below": below}
    metadata = {"text": text, "topic": topic, "choices": choices, "bounds": bounds, "most": most, **former}
    return dataclasses.field(default=default, metadata=metadata)


class Config:
    """Base of the configurations: checks of types and ranges, and conversion to JSON and back."""

    def __post_init__(self) -> None:
        """Checks the type and the range of every field."""
        annotations = _annotations(type(self))  # type: ignore[arg-type]
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value, annotation = getattr(self, field.name), annotations[field.name]
            self._check(field.name, _fits(value, annotation), _expected(annotation))
            if value is None:
                continue
            choices, bounds = field.metadata["choices"], field.metadata["bounds"]
            if choices is not None:
                optional = "None or " if _is_optional(annotation) else ""
                self._check(field.name, value in choices, f"{optional}one of {', '.join(choices)}")
            self._check(field.name, all(_within(x, **bounds) for x in _numbers(value)), _range(bounds, value))
            most, whole = (
                field.metadata["most"],
                [x for x in _numbers(value) if isinstance(x, numbers.Integral)],
            )
            self._check(field.name, all(x <= most for x in whole), f"at most {most}")

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{name} must be {expected}, got {short_repr(getattr(self, name))}")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """The configuration that `to_dict` gave; lists become tuples.

        A field that an earlier version did not have gets the value that means what that version did.

        Raises:
          ValueError: `fields` is no dict, or a field is unknown or out of its range.
        """
        if not isinstance(fields, dict):
            raise ValueError(f"a configuration must be a dict of fields, got {type(fields).__name__}")
        known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(map(str, set(fields) - set(known)))
        if unknown:
            raise ValueError(f"unknown fields {unknown}, expected a subset of {sorted(known)}")
        former = {
            name: field.metadata["former"] for name, field in known.items() if "former" in field.metadata
        }
        return cls(**{**former, **{name: _tuples(value) for name, value in fields.items()}})


@functools.cache
def _annotations(config: type) -> dict[str, Any]:
    return typing.get_type_hints(config)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value


def _is_optional(annotation: Any) -> bool:
    return isinstance(annotation, types.UnionType) and type(None) in typing.get_args(annotation)


def _fits(value: Any, annotation: Any) -> bool:
    """Whether `value` is of the annotated type: a scalar, a union, or a tuple of such."""
    if isinstance(annotation, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(annotation))
    if annotation in _SCALARS:
        if isinstance(value, bool) and annotation is not bool:
            return False
        if annotation is float:
            return isinstance(value, numbers.Real) and math.isfinite(value) and abs(float(value)) <= _LARGEST
        if annotation is int:
            return isinstance(value, numbers.Integral) and abs(int(value)) <= _MOST
        return isinstance(value, annotation)
    parts = typing.get_args(annotation)
    if not isinstance(value, tuple):
        return False
    if parts[-1] is Ellipsis:
        return all(_fits(x, parts[0]) for x in value)
    return len(value) == len(parts) and all(map(_fits, value, parts))


def _expected(annotation: Any) -> str:
    """The annotated type in words."""
    if isinstance(annotation, types.UnionType):
        words = [_expected(part) for part in typing.get_args(annotation)]
        return " or ".join(sorted(words, key=lambda word: word != "None"))
    if annotation in _SCALARS:
        return _SCALARS[annotation][0]
    parts = typing.get_args(annotation)
    if parts[-1] is Ellipsis:
        return f"a tuple of {_plural(parts[0])}"
    if len(set(parts)) == 1:
        return f"a tuple of {len(parts)} {_plural(parts[0])}"
    return f"a tuple of {', '.join(map(_expected, parts))}"


def _plural(annotation: Any) -> str:
    if annotation in _SCALARS:
        return _SCALARS[annotation][1]
    return f"layers, each {_expected(annotation)}"


def _numbers(value: Any) -> list[Any]:
    if isinstance(value, tuple):
        return [number for part in value for number in _numbers(part)]
    return [] if isinstance(value, str | bool) or value is None else [value]


def _within(
    x: float, at_least: float | None, at_most: float | None, above: float | None, below: float | None
) -> bool:
    return (
        (at_least is None or x >= at_least)
        and (at_most is None or x <= at_most)
        and (above is None or x > above)
        and (below is None or x < below)
    )


def _range(bounds: dict[str, float | None], value: Any) -> str:
    low, high = bounds["at_least"], bounds["at_most"]
    if (low, high) != (None, None) and None not in (low, high):
        words = f"between {low} and {high}"
    elif bounds["above"] is not None and bounds["below"] is not None:
        words = f"between {bounds['above']} and {bounds['below']}"
    else:
        words = " and ".join(
            f"{name.replace('_', ' ')} {bound}" for name, bound in bounds.items() if bound is not None
        )
    if not isinstance(value, tuple):
        return words
    return f"layers of sizes of {words}" if value and isinstance(value[0], tuple) else f"sizes of {words}"

"""Options for the fields of a configuration, and parsers of the values that people write."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import math
import re
import sys
import typing
from collections.abc import Callable
from typing import Any, NoReturn

from btnn_jax.training.config import Config, LayerConfig, UnrealConfig

__all__ = [
    "Parser",
    "StoreOnce",
    "add_fields",
    "assignment",
    "at_least_one",
    "at_least_zero",
    "fractions",
    "in_options",
    "integer",
    "layers",
    "option_of",
    "positive",
    "seed",
    "variation",
    "with_default",
    "words",
]

_NAMES = {"total_steps": "--steps", "layer_config": "--layers"}


class Parser(argparse.ArgumentParser):
    """Answers a mistake with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Prints the line and exits with 2."""
        print(f"btnn-jax: error: {message}", file=sys.stderr)
        raise SystemExit(2)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse's, but what is not known is a mistake here, where the options that are can be named."""
        given, unknown = super().parse_known_args(args, namespace)
        if unknown:
            option = unknown[0].partition("=")[0]
            close = difflib.get_close_matches(option, self._option_string_actions, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return given, unknown


class StoreOnce(argparse.Action):
    """Keeps a value that may be given as an argument and as an option, once or twice the same."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Stores the value."""
        if (before := getattr(namespace, self.dest, values)) != values:
            parser.error(f"{before} and {values} were both given; choose one")
        setattr(namespace, self.dest, values)


def add_fields(parser: argparse.ArgumentParser, config: type[Config]) -> None:
    """Adds an option for every field of a configuration, with the field's type, topic and help text."""
    types = typing.get_type_hints(config)
    group: Any = parser
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        if field.metadata["topic"] is not None:
            group = parser.add_argument_group(field.metadata["topic"])
        text = with_default(in_options(field.metadata["text"], config), field.default)
        _add_field(group, field.name, types[field.name], field.metadata["choices"], text)


def option_of(name: str) -> str:
    """The option's name of a configuration's field."""
    return _NAMES.get(name, "--" + name.replace("_", "-"))


def in_options(message: str, config: type[Config]) -> str:
    """A message of a configuration, with the names of its fields as they are on the command line.

    Inside of it only names of several words are: `steps` may be just a word.

    >>> from btnn_jax.training.config import UnrealConfig
    >>> in_options("replay_length must be a multiple of rollout_length=32", UnrealConfig)
    '--replay-length must be a multiple of --rollout-length=32'
    """
    known = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    names = re.compile(r"^\w+|\b[a-z]+_[a-z_]+\b")
    return names.sub(lambda name: option_of(name[0]) if name[0] in known else name[0], message)


def _add_field(group: Any, name: str, kind: Any, choices: tuple[str, ...] | None, text: str) -> None:
    option = option_of(name)
    optional = type(None) in typing.get_args(kind)
    if optional:
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if kind is bool:
        group.add_argument(option, dest=name, action=argparse.BooleanOptionalAction, help=text)
        return
    if choices is not None:
        allowed: tuple[str | None, ...] = (*choices, None) if optional else choices
        group.add_argument(
            option,
            dest=name,
            type=_or_none(str, None) if optional else str,
            choices=allowed,
            metavar=f"{{{','.join('none' if word is None else word for word in allowed)}}}",
            help=text,
        )
        return
    parse, metavar = _PARSERS[kind]
    if optional or Ellipsis in typing.get_args(kind):
        parse = _or_none(parse, None if optional else ())
    group.add_argument(option, dest=name, type=parse, metavar=metavar, help=text)


def with_default(text: str, default: Any) -> str:
    """A help text with the default in the words that the option takes.

    >>> with_default("sizes", (128, 64))
    'sizes (default: 128,64)'
    """
    if default is None or default == ():
        default = "none"
    elif isinstance(default, bool):
        default = "yes" if default else "no"
    elif isinstance(default, tuple):
        default = ",".join(map(str, default))
    return f"{text} (default: {default})"


def _or_none(parse: Callable[[str], Any], none: Any) -> Callable[[str], Any]:
    return lambda text: none if text.lower() == "none" else parse(text)


def integer(text: str) -> int:
    """A whole number, also written 2_000_000, 2e6, 2M or 500k."""
    digits, scale = (text[:-1], {"k": 1e3, "M": 1e6}[text[-1]]) if text[-1:] in ("k", "M") else (text, 1)
    try:
        value = float(digits) * scale
        if value.is_integer():
            return int(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}")


def at_least_one(text: str) -> int:
    """A whole number of at least 1, and of 31 bits, as counts of arrays are."""
    return _bounded(integer(text), 1)


def at_least_zero(text: str) -> int:
    """A whole number of at least 0, and of 31 bits."""
    return _bounded(integer(text), 0)


def seed(text: str) -> int:
    """A seed: a whole number of 32 bits."""
    value = integer(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"must be between 0 and {2**32 - 1}, got {text}")
    return value


def positive(text: str) -> float:
    """A number above 0."""
    value = _number(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def fractions(text: str) -> tuple[float, ...]:
    """Numbers from 0 to 1, with commas between them.

    >>> fractions("0,1e-4")
    (0.0, 0.0001)
    """
    values = tuple(_number(part) for part in text.split(","))
    if min(values) < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    if max(values) > 1:
        raise argparse.ArgumentTypeError(f"must be at most 1, got {text}")
    return values


def words(text: str) -> tuple[str, ...]:
    """Words with commas between them.

    >>> words("cpu, cuda")
    ('cpu', 'cuda')
    """
    return tuple(part.strip() for part in text.split(","))


def assignment(text: str) -> tuple[str, Any]:
    """A name and its value, read as Python where it is some.

    >>> assignment("length=3"), assignment("flag=true"), assignment("word=a=b")
    (('length', 3), ('flag', True), ('word', 'a=b'))
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value.capitalize() if value in ("true", "false") else value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # the latter two of deeply nested words
        return name, value


def variation(text: str) -> tuple[str, tuple[float, float, bool] | list[Any]]:
    """An option of `train` and where to search for its value: a range (low, high, whether logarithmic) or choices.

    >>> variation("learning_rate=1e-4:1e-2:log"), variation("hidden=64/128,128"), variation("noisy=yes/no")
    (('learning_rate', (0.0001, 0.01, True)), ('hidden', [(64,), (128, 128)]), ('noisy', [True, False]))
    """
    given, equals, values = text.partition("=")
    name = given.removeprefix("--").replace("-", "_")
    name = next((field for field, option in _NAMES.items() if option == f"--{name}"), name)
    kinds = typing.get_type_hints(UnrealConfig)
    if name not in kinds:
        close = difflib.get_close_matches(name, kinds, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise argparse.ArgumentTypeError(f"{given!r} is no option of train{hint}")
    if not equals or not values:
        raise argparse.ArgumentTypeError(f"expected {name}=LOW:HIGH, LOW:HIGH:log or A/B/C, got {text!r}")
    kind = kinds[name]
    if kind is float and ":" in values:
        low, high, *log = values.split(":")
        if log not in ([], ["log"]):
            raise argparse.ArgumentTypeError(f"expected {name}=LOW:HIGH or LOW:HIGH:log, got {text!r}")
        return name, (_number(low), _number(high), bool(log))
    return name, [_choice(kind, value) for value in values.split("/")]


def _choice(kind: Any, text: str) -> Any:
    if kind is bool:
        if text not in ("yes", "no", "true", "false"):
            raise argparse.ArgumentTypeError(f"expected yes or no, got {text!r}")
        return text in ("yes", "true")
    optional = type(None) in typing.get_args(kind)
    if optional:
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    parse = _PARSERS[kind][0]
    if optional or Ellipsis in typing.get_args(kind):
        parse = _or_none(parse, None if optional else ())
    return parse(text)


def layers(text: str) -> LayerConfig:
    """Filters, filter size and stride of each layer.

    >>> layers("32:3x1:2x1,4:3x3:1x1")
    ((32, (3, 1), (2, 1)), (4, (3, 3), (1, 1)))
    """
    try:
        parsed = []
        for layer in text.split(","):
            filters, size, stride = layer.split(":")
            (height, width), (down, right) = (map(int, part.split("x")) for part in (size, stride))
            parsed.append((int(filters), (height, width), (down, right)))
        return tuple(parsed)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected layers as 32:3x1:2x1,16:3x1:2x1 (filters:size:stride), got {text!r}"
        ) from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return value


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(integer(part) for part in text.split(","))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _bounded(value: int, least: int) -> int:
    if value < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
    if value >= 2**31:
        raise argparse.ArgumentTypeError(f"must be below {2**31}, got {value:.3g}")
    return value


_PARSERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    int: (integer, "N"),
    float: (_number, "X"),
    str: (str, "NAME"),
    tuple[int, int]: (_sizes, "N,N"),
    tuple[int, ...]: (_sizes, "N,N"),
    tuple[str, ...]: (_words, "NAME,NAME"),
    LayerConfig: (layers, "N:HxW:HxW,..."),
}
"""How each type of field is read, and what its value is called in the help."""

"""Packages that only some commands need, imported where they are used."""

from __future__ import annotations

import importlib
from types import ModuleType


def import_extra(module: str, purpose: str) -> ModuleType:
    """Imports an optional dependency, or says what to install.

    Args:
      module: dotted name of the module.
      purpose: what needs it, the subject of the error's sentence, such as `"the progress bar"`.

    Raises:
      ModuleNotFoundError: the module is missing; the message is one line.

    >>> import_extra("json", "configuration").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{purpose} needs the package {error.name!r}: pip install 'btnn-jax[train]'", name=error.name
        ) from error

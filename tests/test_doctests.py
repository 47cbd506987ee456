"""The examples in the docstrings, run as they stand."""

import doctest
import importlib
import pkgutil

import pytest

import btnn_jax

MODULES = [
    m.name for m in pkgutil.walk_packages(btnn_jax.__path__, "btnn_jax.") if not m.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = [t for name in MODULES for t in finder.find(importlib.import_module(name)) if t.examples]
    assert len(examples) >= 10

"""The README's Python example, run as it stands."""

import pathlib
import re

import jax

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_the_example_runs():
    example, _ = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    names = {}
    with jax.numpy_dtype_promotion("standard"):  # a user's own settings
        exec(example, names)
    assert names["history"][-1] < 0.5 * names["history"][0]

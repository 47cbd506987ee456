"""The Python examples of the pages, run as they stand."""

import pathlib
import re

import jax
import pytest

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PAGES = ("environments",)


@pytest.mark.parametrize("page", PAGES)
def test_examples_of_a_page_run(page, capsys):
    if page == "environments":
        pytest.importorskip("gymnasium")
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        with jax.numpy_dtype_promotion("standard"):  # a user's own settings
            exec(block, {})
    assert capsys.readouterr().out

"""docs/data.md: its examples run as they stand, and what it shows is what comes out."""

import pathlib
import re

import jax
import pytest

from btnn_jax import cli
from btnn_jax.data import prices

TEXT = (pathlib.Path(__file__).parents[2] / "docs" / "data.md").read_text()
NASDAQ = (
    "Date,Close/Last,Volume,Open,High,Low\n02/16/2024,$182.31,49752470,$183.42,$184.85,$181.665\n"
    "02/15/2024,$183.86,65434500,$183.55,$184.49,$181.35\n02/14/2024,$184.15,54630520,$185.32,$185.53,$182.44\n"
    "02/13/2024,$185.04,56529530,$185.77,$186.21,$183.5128\n"
)


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    with jax.numpy_dtype_promotion("standard"):  # a user's own settings
        for example in re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL):
            exec(example, names)
    out = capsys.readouterr().out
    assert "('Open', 'Close') 2024-02-05T00:00:00 [1.09 1.11]" in out
    assert "'1 rows with missing values have been left out'" in out
    assert "('apple Open', 'apple Close', 'microsoft Open', 'microsoft Close')" in out
    assert "{'AAPL': 4, 'MSFT': 4}" in out


def test_what_it_shows_is_what_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("nasdaq.csv").write_text(NASDAQ)
    assert cli.main(["data", "nasdaq.csv"]) == 0
    (shown,) = re.findall(r"```console\n\$ btnn-jax data nasdaq.csv\n(.*?)```", TEXT, flags=re.DOTALL)
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("option", prices.OPTIONS)
def test_every_option_is_described(option):
    assert f"`{option}`" in TEXT

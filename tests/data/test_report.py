"""What is told of how prices were understood."""

import numpy as np
import pytest

from btnn_jax.data import Series, read_prices
from btnn_jax.data.report import bar_length, describe, duration

TEXT = """<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>
2024.02.05\t09:30:00\t1\t2\t1\t2\t5\t0\t12
2024.02.05\t10:30:00\t2\t3\t1\t3\t5\t0\t12
2024.02.05\t10:30:00\t2\t3\t1\t3\t5\t0\t12
2024.02.05\t11:30:00\t3\t4\t2\t2\t5\t0\t12
2024.02.08\t11:30:00\t2\t3\t1\t3\t5\t0\t12
"""


def test_a_description_says_all_that_was_understood(tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text(TEXT)
    lines = describe(read_prices(path, duplicates="last")).splitlines()
    assert lines[0] == str(path)
    assert [line.strip() for line in lines[1:]] == [
        "layout      MetaTrader 5",
        "rows        4",
        "columns     <OPEN> as Open, <HIGH> as High, <LOW> as Low, <CLOSE> as Close, <TICKVOL> as Tick Volume, <VOL> "
        "as Volume",
        "left out    <SPREAD>",
        "times       <DATE> <TIME>, YYYY.MM.DD hh:mm:ss, without a zone, as they stand",
        "span        2024-02-05 09:30:00 to 2024-02-08 11:30:00",
        "bar length  1 hour, 2 of 3 steps",
        "gaps        1, nights and weekends included; the longest of 3 days from 2024-02-05 11:30:00 (line 6)",
        "duplicates  1 rows repeat a time: duplicates=first or duplicates=last keeps one of each",
        "close       2 to 3",
        "note        1 rows repeated a time: the last of each has been kept",
    ]


def test_a_description_of_what_has_no_times():
    text = describe(read_prices(np.array([[1.0, 2.0], [3.0, 4.0]])))
    assert "asset_1  2 to 4" in " ".join(text.split()).replace("asset_1 ", "asset_1  ")
    assert "span" not in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 seconds"),
        (1, "1 second"),
        (90, "1 minute 30 seconds"),
        (86400 * 9, "1 week 2 days"),
        (3601, "1 hour 1 second"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_bar_length_is_the_most_frequent_step():
    times = np.array([0, 60, 120, 300, 900], "datetime64[s]")
    assert bar_length(Series(("Close",), times, np.ones((5, 1)))) == 60
    assert bar_length(Series(("Close",), None, np.ones((5, 1)))) == 0

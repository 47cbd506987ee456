"""Data frames give the series that the same prices give as a file."""

import re

import numpy as np
import pytest

from btnn_jax import envs
from btnn_jax.data import from_frame, load_csv
from btnn_jax.runs.agent import train
from btnn_jax.runs.folder import RunError
from btnn_jax.training.config import UnrealConfig

pandas = pytest.importorskip("pandas")


@pytest.fixture
def frame():
    index = pandas.date_range("2024-01-01", periods=200, freq="h", name="Date")
    closes = 100 + np.sin(np.arange(200) / 7)
    columns = {
        "Open": closes,
        "High": closes + 1,
        "Low": closes - 1,
        "Close": closes + 0.5,
        "Volume": np.arange(200),
    }
    return pandas.DataFrame(columns, index=index)


def test_a_frame_is_read_as_its_file_is(frame, tmp_path):
    frame.to_csv(tmp_path / "prices.csv")
    right = load_csv(tmp_path / "prices.csv")
    zoned = frame.tz_localize("UTC")
    for given in (frame, frame.reset_index(), zoned, zoned.tz_convert("Asia/Tokyo")):
        found = from_frame(given)
        assert found.names == right.names
        np.testing.assert_array_equal(found.times, right.times)
        np.testing.assert_allclose(found.values, right.values)


def test_a_frame_of_bars_is_one_asset_and_not_five(frame, tmp_path):
    frame.to_csv(tmp_path / "prices.csv")
    given, read = (
        envs.make("trading", data=data, episode=64) for data in (frame, str(tmp_path / "prices.csv"))
    )
    assert given.assets == read.assets == ("price",)
    assert given.action_depths == read.action_depths == 4
    np.testing.assert_array_equal(given.close, read.close)
    np.testing.assert_array_equal(given.signal, read.signal)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.assign(Close="high"), "column Close must hold numbers, got"),
        (lambda frame: frame[::-1], "times must increase"),
        (lambda frame: pandas.concat({"AAPL": frame}, axis=1), "one level of names, got ('AAPL', 'Open')"),
    ],
)
def test_a_frame_that_holds_no_prices_is_one_line(frame, change, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        from_frame(change(frame))
    assert "\n" not in str(caught.value)


def test_a_run_says_how_to_keep_prices_that_it_cannot_write_down(frame, tmp_path):
    config = UnrealConfig(pc_weight=0)
    with pytest.raises(
        RunError, match=r"data=DataFrame cannot be written down in the run's config.json.*to_csv.*its path"
    ):
        train("trading", config, env_params={"data": frame}, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()

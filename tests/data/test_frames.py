"""Data frames of pandas and polars, and Parquet files, give the series that the same prices give as a text file."""

import re

import numpy as np
import pytest

from btnn_jax import envs
from btnn_jax.data import load_prices, read_prices
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


@pytest.fixture
def right(frame, tmp_path):
    frame.to_csv(tmp_path / "prices.csv")
    return load_prices(tmp_path / "prices.csv")


def by_ticker(frame):
    return pandas.concat({"XYZ": frame}, axis=1, names=["Ticker", "Price"])


FORMS = {
    "index": lambda frame: frame,
    "column": lambda frame: frame.reset_index(),
    "no name": lambda frame: frame.rename_axis(None),
    "in UTC": lambda frame: frame.tz_localize("UTC"),
    "in Tokyo": lambda frame: frame.tz_localize("UTC").tz_convert("Asia/Tokyo"),
    "in text": lambda frame: frame.reset_index().astype(str),
    "objects": lambda frame: frame.astype(object),
    "nanoseconds": lambda frame: frame.set_axis(frame.index.as_unit("ns")),
    "epochs": lambda frame: frame.set_axis(frame.index.as_unit("ms").astype("int64").rename("time")),
    "periods": lambda frame: frame.set_axis(frame.index.to_period("h")),
    "small types": lambda frame: frame.astype({"Volume": "int32"}),
    "nullable types": lambda frame: frame.convert_dtypes(),
    "by ticker": by_ticker,
    "by field": lambda frame: by_ticker(frame).swaplevel(axis=1),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_frame_is_read_as_its_file_is(frame, right, form):
    found = load_prices(FORMS[form](frame))
    assert found.names == right.names
    np.testing.assert_array_equal(found.times, right.times)
    np.testing.assert_array_equal(found.values, right.values)
    assert found.lines is None


@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo"])
def test_a_frame_of_polars_is_read_as_its_file_is(frame, right, zone):
    polars = pytest.importorskip("polars")
    times = polars.Series("Date", frame.index.to_numpy())
    if zone is not None:
        times = times.dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
    columns = [polars.Series(name, frame[name].to_numpy()) for name in frame]
    reading = read_prices(polars.DataFrame([times, *columns]))
    np.testing.assert_array_equal(reading.series.times, right.times)
    np.testing.assert_array_equal(reading.series.values, right.values)
    assert reading.zone == (zone is not None)


def test_a_parquet_file_is_read_as_its_text_is(frame, right, tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "prices.parquet"
    frame.to_parquet(path)
    found = load_prices(path)
    np.testing.assert_array_equal(found.times, right.times)
    np.testing.assert_array_equal(found.values, right.values)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"prices\.parquet is not a Parquet file that can be read") as caught:
        load_prices(path)
    assert "\n" not in str(caught.value)


def test_a_series_of_pandas_is_closes(frame):
    found = load_prices(frame["Close"])
    assert found.names == ("Close",)
    np.testing.assert_array_equal(found.values[:, 0], frame["Close"])
    assert load_prices(frame["Close"].rename("AAPL")).names == ("AAPL",)


def test_several_frames_are_several_assets(frame):
    series = load_prices({"AAPL": frame, "MSFT": 2 * frame})
    assert series.names[:5] == tuple(f"AAPL {name}" for name in frame)
    np.testing.assert_array_equal(series.select("MSFT Close").values[:, 0], 2 * frame["Close"])


def test_frames_that_are_newest_first_are_sorted(frame, right):
    with pytest.warns(UserWarning, match="the data frame: the rows were newest first"):
        found = load_prices(frame[::-1])
    np.testing.assert_array_equal(found.values, right.values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.assign(Close="high"), "the data frame, row 0: Close is 'high', not a number"),
        (lambda frame: frame.assign(Close=True), "row 0: Close is 'True', not a number"),
        (lambda frame: frame.sample(frac=1, random_state=0), "comes after"),
        (
            lambda frame: pandas.concat([frame, frame]).sort_index(),
            "row 1: repeats the time 2024-01-01T00:00:00 of row 0",
        ),
        (lambda frame: frame.reset_index(drop=True), "the data frame, row 0: Open is '100.0', not a time"),
        (
            lambda frame: frame.where(frame.Volume != 3),
            "row 3: Open is '', not a number; missing='drop'",
        ),
        (lambda frame: frame[:0], "the data frame has a header but no rows"),
        (lambda frame: pandas.DataFrame(), "the data frame has no columns"),
        (lambda frame: pandas.concat({"a": by_ticker(frame)}, axis=1), "one or two levels of names, got 3"),
        (lambda frame: frame.set_index("Open", append=True), "the index must have one level, got 2"),
    ],
)
def test_a_frame_that_holds_no_prices_is_one_line(frame, change, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_prices(change(frame))
    assert "\n" not in str(caught.value)


def test_a_frame_of_bars_is_one_asset_and_not_five(frame, tmp_path):
    frame.to_csv(tmp_path / "prices.csv")
    sources = (frame, str(tmp_path / "prices.csv"))
    given, read = (envs.make("trading", data=data, episode_length=64) for data in sources)
    assert given.assets == read.assets == ("price",)
    assert given.action_depths == read.action_depths == 4
    np.testing.assert_array_equal(given.close, read.close)
    np.testing.assert_array_equal(given.signal, read.signal)


def test_a_run_says_how_to_keep_prices_that_it_cannot_write_down(frame, tmp_path):
    config = UnrealConfig(pc_weight=0)
    with pytest.raises(
        RunError, match=r"data=DataFrame cannot be written down in the run's config.json.*to_csv.*its path"
    ):
        train("trading", config, env_params={"data": frame}, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()

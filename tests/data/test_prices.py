"""`load_prices`: what settles doubtful dates and numbers, missing values, several assets, and every kind of source."""

import gzip
import re

import numpy as np
import pytest

from btnn_jax.data import load_prices, read_prices

HEADER = "Date,Open,High,Low,Close,Volume\n"


@pytest.fixture
def write(tmp_path):
    def write(text, name="prices.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return path

    return write


def at(*texts):
    return np.array(texts, "datetime64[s]")


AMBIGUOUS = "Date,Close\n01/02/2024,1\n02/03/2024,2\n"


@pytest.mark.parametrize(
    ("text", "message", "option", "right", "other"),
    [
        (
            AMBIGUOUS,
            "line 2: Date is '01/02/2024', which may be 2024-02-01 or 2024-01-02, and no row says which: choose "
            "day_first=True or day_first=False",
            "day_first",
            (True, at("2024-02-01", "2024-03-02")),
            (False, at("2024-01-02", "2024-02-03")),
        ),
        (
            "Date,Close\n01-02-24,1\n02-03-24,2\n",
            "choose day_first=True or day_first=False",
            "day_first",
            (True, at("2024-02-01", "2024-03-02")),
            (False, at("2024-01-02", "2024-02-03")),
        ),
    ],
)
def test_ambiguous_dates_are_an_error_that_names_the_option(write, text, message, option, right, other):
    path = write(text)
    with pytest.raises(ValueError, match=r"prices\.csv") as caught:
        load_prices(path)
    assert message in str(caught.value)
    for value, times in (right, other):
        np.testing.assert_array_equal(load_prices(path, **{option: value}).times, times)


@pytest.mark.parametrize(
    ("last", "times"),
    [
        ("13/03/2024", at("2024-02-01", "2024-03-13")),
        ("02/13/2024", at("2024-01-02", "2024-02-13")),
    ],
)
def test_one_day_above_12_settles_all_dates(write, last, times):
    np.testing.assert_array_equal(load_prices(write(f"Date,Close\n01/02/2024,1\n{last},2\n")).times, times)


def test_the_day_that_settles_it_may_come_late(write):
    minutes = "".join(f"01/02/2024 {i // 60:02}:{i % 60:02},1\n" for i in range(1440)) * 1
    later = "".join(f"0{day}/02/2024 {i // 60:02}:{i % 60:02},1\n" for day in (2, 3) for i in range(1440))
    path = write("Date,Close\n" + minutes + later + "13/02/2024 00:00,1\n")
    assert load_prices(path).times[0] == np.datetime64("2024-02-01")


def test_dates_that_are_the_same_either_way_are_no_question(write):
    path = write("Date,Close\n01/01/2024,1\n02/02/2024,2\n")
    np.testing.assert_array_equal(load_prices(path).times, at("2024-01-01", "2024-02-02"))


def test_ambiguous_numbers_are_an_error_that_names_the_option(write):
    path = write("Date;Close\n2024-01-02;1,234\n2024-01-03;1,235\n")
    with pytest.raises(
        ValueError, match=r"prices\.csv: '1,234' may have three .*choose decimal=',' or decimal='\.'"
    ):
        load_prices(path)
    np.testing.assert_array_equal(load_prices(path, decimal=",").values[:, 0], [1.234, 1.235])
    np.testing.assert_array_equal(load_prices(path, decimal=".").values[:, 0], [1234, 1235])


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (("1.234,5", "99,25"), (1234.5, 99.25)),
        (('"1,234.5"', "99.25"), (1234.5, 99.25)),
        (("1 234,5", "99,25"), (1234.5, 99.25)),
        (("1'234.5", "99.25"), (1234.5, 99.25)),
        (("\u20ac1234.5", "99.25"), (1234.5, 99.25)),
        (("1.2345e3", "+.5"), (1234.5, 0.5)),
    ],
)
def test_numbers_in_many_formats(write, cells, values):
    rows = "".join(f"2024-01-0{i + 2};{cell}\n" for i, cell in enumerate(cells))
    np.testing.assert_array_equal(load_prices(write(f"Date;Close\n{rows}")).values[:, 0], values)


def test_a_number_written_otherwise_than_the_others_is_an_error(write):
    path = write("Date;Close\n2024-01-02;1,5\n2024-01-03;2,5\n2024-01-04;1.5\n")
    with pytest.raises(ValueError, match=r"line 4: Close is '1\.5', not a number as the others are written"):
        load_prices(path)
    path = write('Date;Close\n2024-01-02;"1,234.5"\n2024-01-03;1,5\n')
    with pytest.raises(ValueError, match="line 3: Close is '1,5', not a number as the others are written"):
        load_prices(path)


HOLES = (
    HEADER
    + "2024-01-01,null,null,null,null,null\n2024-01-02,10,12,9,11,5\n2024-01-03,,,,,\n2024-01-04,13,14,12,13,6\n"
    "2024-01-05,13,15,12,,6\n2024-01-08,N/A,15,12,14,\n"
)


def test_missing_values_are_an_error_with_the_line(write):
    with pytest.raises(
        ValueError, match=r"prices\.csv, line 2: Open is 'null', not a number \(and 2 more like it\); miss"
    ):
        load_prices(write(HOLES))


def test_missing_values_are_dropped_where_asked(write):
    reading = read_prices(write(HOLES), missing="drop")
    np.testing.assert_array_equal(reading.series.times, at("2024-01-02", "2024-01-04"))
    np.testing.assert_array_equal(reading.series.lines, [3, 5])
    assert reading.notes == ("4 rows with missing values have been left out",)


def test_missing_values_are_filled_with_the_last_close_where_asked(write):
    reading = read_prices(write(HOLES), missing="ffill")
    np.testing.assert_array_equal(
        reading.series.values,
        [
            [10, 12, 9, 11, 5],
            [11, 11, 11, 11, 0],  # a bar that stands still: an order in it is filled at the last price known
            [13, 14, 12, 13, 6],
            [13, 13, 13, 13, 6],
            [13, 15, 12, 14, 0],  # opens where the last one closed
        ],
    )
    assert reading.notes[1] == "1 rows before the first price have been left out"


def test_what_is_no_missing_value_stays_an_error(write):
    for option in ("drop", "ffill"):
        with pytest.raises(ValueError, match="line 2: Close is 'x', not a number"):
            load_prices(write("Date,Close\n2024-01-02,x\n2024-01-03,1\n"), missing=option)
        with pytest.raises(ValueError, match="line 2: Close is inf, not a number"):
            load_prices(write("Date,Close\n2024-01-02,inf\n2024-01-03,1\n"), missing=option)
    with pytest.raises(ValueError, match="every row has missing values"):
        load_prices(write("Date,Close\n2024-01-02,\n"), missing="drop")


WIDE = "Date,AAPL,MSFT,Dividends,Sector\n2024-01-02,1,10,0.1,IT\n2024-01-03,2,20,0,IT\n"


def test_a_wide_file_has_several_assets(write):
    reading = read_prices(write(WIDE))
    assert reading.series.names == ("AAPL", "MSFT")
    assert reading.ignored == ("Dividends", "Sector")
    np.testing.assert_array_equal(reading.series.values, [[1, 10], [2, 20]])


def test_a_ticker_that_is_a_word_of_bars_is_an_asset(write):
    assert load_prices(write("Date,AAPL,LOW,OPEN\n2024-01-02,1,2,3\n")).names == ("AAPL", "LOW", "OPEN")


@pytest.mark.parametrize(
    "text",
    [
        "Price,Close,Close,Open,Open,Volume,Volume\nTicker,AAPL,MSFT,AAPL,MSFT,AAPL,MSFT\nDate,,,,,,\n2024-01-02,1,10,2,20,0,5\n",
        "Ticker,AAPL,AAPL,AAPL,MSFT,MSFT,MSFT\nPrice,Close,Open,Volume,Close,Open,Volume\nDate,,,,,,\n"
        "2024-01-02,1,2,0,10,20,5\n",
        "Date,AAPL_Close,AAPL_Open,AAPL_Volume,MSFT_Close,MSFT_Open,MSFT_Volume\n2024-01-02,1,2,0,10,20,5\n",
        "Date,Close AAPL,Open AAPL,Volume AAPL,Close MSFT,Open MSFT,Volume MSFT\n2024-01-02,1,2,0,10,20,5\n",
    ],
    ids=["by field", "by ticker", "in one row", "field first"],
)
def test_a_wide_file_has_the_bars_of_several_assets(write, text):
    series = load_prices(write(text))
    np.testing.assert_array_equal(series.times, at("2024-01-02"))
    right = {
        "AAPL Close": 1,
        "AAPL Open": 2,
        "AAPL Volume": 0,
        "MSFT Close": 10,
        "MSFT Open": 20,
        "MSFT Volume": 5,
    }
    assert dict(zip(series.names, series.values[0], strict=True)) == right


def test_one_file_for_each_asset(write):
    first = write("Date,Open,Close\n2024-01-02,1,2\n2024-01-03,2,3\n2024-01-04,3,4\n", "AAPL.csv")
    second = write("Date,Open,Close\n2024-01-02,10,20\n2024-01-04,30,40\n2024-01-05,40,50\n", "MSFT.us.csv")
    with pytest.raises(
        ValueError, match=r"MSFT has no row at 2024-01-03T00:00:00, as others have; missing='drop'"
    ):
        load_prices([first, second])
    series = load_prices([first, second], missing="drop")
    assert series.names == ("AAPL Open", "AAPL Close", "MSFT Open", "MSFT Close")
    np.testing.assert_array_equal(series.times, at("2024-01-02", "2024-01-04"))
    np.testing.assert_array_equal(series.values, [[1, 2, 10, 20], [3, 4, 30, 40]])
    series = load_prices({"a": first, "b": second}, missing="ffill")
    assert series.names == ("a Open", "a Close", "b Open", "b Close")
    np.testing.assert_array_equal(series.values[1], [2, 3, 20, 20])
    np.testing.assert_array_equal(series.values[3], [4, 4, 40, 50])
    third = write("Date,Close\n2024-01-02Z,2\n", "zone.csv")
    with pytest.raises(
        ValueError, match=r"times in \S*zone.csv have a zone, and those in \S*AAPL.csv have none"
    ):
        load_prices([first, third])


def test_a_file_with_the_rows_of_several_assets(write):
    rows = "".join(f"2024-01-0{day},{name},{day}\n" for name in ("AAPL", "MSFT") for day in (2, 3))
    path = write("date,symbol,close\n" + rows)
    with pytest.raises(
        ValueError, match="symbol names several assets, AAPL, MSFT: choose one, such as symbol='AAPL'"
    ):
        load_prices(path)
    series = load_prices(path, symbol="MSFT")
    np.testing.assert_array_equal(series.values[:, 0], [2, 3])
    np.testing.assert_array_equal(series.lines, [4, 5])
    with pytest.raises(ValueError, match="symbol has no 'IBM'; there are AAPL, MSFT"):
        load_prices(path, symbol="IBM")
    with pytest.raises(ValueError, match="symbol='IBM' was given, and no column names symbols"):
        load_prices(write(WIDE), symbol="IBM")


def test_columns_and_the_time_are_chosen_by_name(write):
    path = write("Index,open time,close time,close,bid\n0,2024-01-02 00:00,2024-01-02 00:59,5,4\n")
    assert load_prices(path).names == ("Close",)
    series = load_prices(path, columns="bid,CLOSE", time="close time")
    assert series.names == ("bid", "Close")
    np.testing.assert_array_equal(series.times, at("2024-01-02T00:59"))
    with pytest.raises(ValueError, match=r"no column 'ask'; there are Index, close time, Close, bid$"):
        load_prices(path, columns=["ask"])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings(write, encoding):
    path = write("Datum;Er\u00f6ffnung;Schlu\u00df\n05.02.2024;1,5;2,5\n", encoding=encoding)
    np.testing.assert_array_equal(load_prices(path, columns=["Er\u00f6ffnung"]).values, [[1.5]])


def test_an_encoding_is_chosen_by_name(write):
    path = write("\u65e5\u4ed8,\u7d42\u5024\n2024/02/05,2\n", encoding="shift-jis")
    np.testing.assert_array_equal(load_prices(path, encoding="shift-jis").values, [[2]])
    with pytest.raises(ValueError, match="unknown encoding 'klingon'"):
        load_prices(path, encoding="klingon")


def test_compressed_files(write):
    text = HEADER + "2024-01-02,1,2,1,2,0\n"
    for name in ("prices.csv.gz", "prices.csv"):  # known by its first bytes
        np.testing.assert_array_equal(
            load_prices(write(gzip.compress(text.encode()), name)).values[0], [1, 2, 1, 2, 0]
        )
    with pytest.raises(ValueError, match=r"prices\.xlsx is a zip archive or an Excel file"):
        load_prices(write(b"PK\x03\x04" + bytes(100), "prices.xlsx"))


def test_arrays():
    assert load_prices(np.ones(3)).names == ("Close",)
    assert load_prices([[1.0, 2.0]]).names == ("asset_0", "asset_1")
    bars = np.array([[[1.0, 3.0, 1.0, 2.0], [2.0, 3.0, 1.0, 2.0]]])
    assert load_prices(bars).names[4:6] == ("asset_1 Open", "asset_1 High")
    assert load_prices(bars[:, :1]).names == ("Open", "High", "Low", "Close")
    with pytest.raises(ValueError, match="row 1 of the array: Close must be above 0, got 0"):
        load_prices([1.0, 0.0])
    with pytest.raises(ValueError, match=r"must be \[T\], \[T, A\] or \[T, A, 4\], got shape \(1, 2, 3\)"):
        load_prices(np.ones((1, 2, 3)))
    with pytest.raises(TypeError, match="a file, a data frame or an array of numbers, got a set"):
        load_prices({1, 2})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unsorted": "drop"}, "got 'drop' and 'error'"),
        ({"missing": "fill"}, "missing must be one of ('error', 'drop', 'ffill'), got 'fill'"),
        ({"day_first": "yes"}, "day_first must be one of (None, True, False), got 'yes'"),
        ({"decimal": ";"}, "decimal must be one of (None, '.', ','), got ';'"),
        ({"separator": ",,"}, "separator must be one character, got ',,'"),
        ({"time": "when"}, "no column 'when'; there are Date, Close"),
    ],
)
def test_options_that_make_no_sense(write, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_prices(write(AMBIGUOUS), **options)


def test_a_bar_is_checked_for_each_asset(write):
    text = "Date,A_Open,A_High,A_Low,A_Close,B_Open,B_High,B_Low,B_Close\n2024-01-02,1,2,1,2,1,2,1,3\n"
    with pytest.raises(
        ValueError, match=r"line 2: High and Low must enclose Open and Close of B, got Open 1\.0"
    ):
        load_prices(write(text))

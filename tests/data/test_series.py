"""CSV files: what each layout means, and one line about everything that can be wrong with one."""

import gzip
import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btnn_jax.data import Series, gaps, load_csv, load_installed

BAR = "Date,Open,High,Low,Close\n"
HEADER = "Date,Open,Close,Volume\n"
ROWS = ["2024-01-02,1,2,0\n", "2024-01-03,3,4,5\n", "2024-01-04,5,6,7\n"]


@pytest.fixture
def write(tmp_path):
    def write(text, name="prices.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def at(*texts):
    return np.array(texts, "datetime64[s]")


@pytest.mark.parametrize(
    ("text", "names", "times", "values"),
    [
        (  # HistData
            "20120201 000000;1.3066;1.3067;1.3065;1.30656;0\n20120201 000100;1.3065;1.3066;1.3064;1.3065;3\n",
            ("Open", "High", "Low", "Close", "Volume"),
            ("2012-02-01T00:00:00", "2012-02-01T00:01:00"),
            [[1.3066, 1.3067, 1.3065, 1.30656, 0], [1.3065, 1.3066, 1.3064, 1.3065, 3]],
        ),
        (  # BTGym's own test files: the times are an index without a header
            "1_O;2_H;3_L;4_C;5_V\n20170101 000000;1.1;1.2;1;1.1;0.0\n20170101 000100;1.1;1.2;1;1.1;0.0\n",
            ("Open", "High", "Low", "Close", "Volume"),
            ("2017-01-01T00:00:00", "2017-01-01T00:01:00"),
            [[1.1, 1.2, 1, 1.1, 0]] * 2,
        ),
        (  # Yahoo
            "Date,Open,High,Low,Close,Adj Close,Volume\n2009-05-22,198.5,199.5,196.25,197,197,3433700\n",
            ("Open", "High", "Low", "Close", "Adj Close", "Volume"),
            ("2009-05-22",),
            [[198.5, 199.5, 196.25, 197, 197, 3433700]],
        ),
        (  # Dukascopy
            "Gmt time,Open,High,Low,Close,Volume\n31.12.2016 22:00:00.000 GMT-0000,1,2,1,2,143539993.3\n",
            ("Open", "High", "Low", "Close", "Volume"),
            ("2016-12-31T22:00:00",),
            [[1, 2, 1, 2, 143539993.3]],
        ),
        (  # Dukascopy, local time over a change of the clocks
            "Local time,Close\n25.03.2017 23:00:00.000 GMT+0100,1\n26.03.2017 05:00:00.000 GMT+0200,2\n",
            ("Close",),
            ("2017-03-25T22:00:00", "2017-03-26T03:00:00"),
            [[1], [2]],
        ),
        (  # bars in short, out of order; times without a separator
            "t,c,v,o,h,l\n20161231235900,2,0,1,3,1\n20170101000000,3,1,2,3,1\n",
            ("Close", "Volume", "Open", "High", "Low"),
            ("2016-12-31T23:59", "2017-01-01"),
            [[2, 0, 1, 3, 1], [3, 1, 2, 3, 1]],
        ),
        (  # shares whose names are letters
            "Date,C,V,O\n20170102,2,4,1\n",
            ("C", "V", "O"),
            ("2017-01-02",),
            [[2, 4, 1]],
        ),
        (  # ISO with zones, tabs, the times not first, Windows' line ends, a byte order mark, a blank line
            "\ufeffClose\tTime\r\n1\t2017-01-03T00:00:00-05:00\r\n\r\n2\t2017-01-03T05:00:01Z\r\n",
            ("Close",),
            ("2017-01-03T05:00:00", "2017-01-03T05:00:01"),
            [[1], [2]],
        ),
    ],
)
def test_layouts(write, text, names, times, values):
    series = load_csv(write(text))
    assert series.names == names
    np.testing.assert_array_equal(series.times, at(*times))
    assert series.times.dtype == "datetime64[s]"
    np.testing.assert_array_equal(series.values, values)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_what_is_written_is_read(tmp_path_factory, data):
    length = data.draw(st.integers(1, 30))
    steps = data.draw(st.lists(st.integers(1, 10**7), min_size=length, max_size=length))
    price = st.floats(1e-300, 1e300)
    values = np.array(
        data.draw(st.lists(st.tuples(price, price), min_size=length, max_size=length)), np.float64
    )
    times = np.datetime64("1999-12-31T23:59:58", "s") + np.cumsum(steps)
    path = tmp_path_factory.mktemp("round") / "trip.csv"
    rows = [f"{time},{bid!r},{ask!r}\n" for time, (bid, ask) in zip(times, values.tolist(), strict=True)]
    path.write_text("time,bid,ask\n" + "".join(rows))
    series = load_csv(path)
    assert series.names == ("bid", "ask")
    np.testing.assert_array_equal(series.times, times)
    np.testing.assert_array_equal(series.values, values)


def test_columns_are_chosen_without_reading_the_others(write):
    path = write("Date,Symbol,Open,Close\n2024-01-02,ABC,1,2\n")
    series = load_csv(path, columns=["close", "OPEN"])
    assert series.names == ("Close", "Open")
    np.testing.assert_array_equal(series.values, [[2, 1]])


def test_a_quote_left_open_does_not_swallow_rows(write):
    path = write('Date,Close,Of\n2024-01-02,1,A\n2024-01-03,2,"B\n2024-01-04,3,C\n')
    with pytest.raises(ValueError, match=r"line 3: unexpected end of data$"):
        load_csv(path, columns=["Close"])


def test_gzip(write):
    series = load_csv(write(gzip.compress((HEADER + ROWS[0]).encode()), "prices.csv.gz"))
    np.testing.assert_array_equal(series.values, [[1, 2, 0]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + ROWS[0] + "\n" + "2024-01-03,null,4,5\n", "line 4: Open is 'null', not a number"),
        (HEADER + ROWS[0] + "2024-01-03,3,,5\n", "line 3: Close is '', not a number"),
        (
            HEADER + ROWS[0] + "2024-01-03,3,nan,5\n2024-01-04,3,inf,5\n",
            "line 3: Close is nan, not a number (and 1 more",
        ),
        (HEADER + ROWS[0] + "\n2024-01-03,3,4\n", "line 4: has 3 cells, expected 4"),
        (HEADER + ROWS[0] + "2024-01-03,3,4,5,6\n", "line 3: has 5 cells, expected 4"),
        (HEADER + ROWS[0] + "2024-01-03,3,0,5\n", "line 3: Close must be above 0, got 0"),
        (HEADER + ROWS[0] + "2024-01-03,-3,4,5\n", "line 3: Open must be above 0, got -3"),
        (HEADER + ROWS[0] + "2024-01-03,3,4,-5\n", "line 3: Volume must not be negative, got -5"),
        (
            HEADER + ROWS[1] + "\n" + ROWS[0],
            "line 4: the time 2024-01-02T00:00:00 comes after 2024-01-03T00:00:00",
        ),
        (
            HEADER + ROWS[0] + ROWS[0] * 2,
            "line 3: repeats the time 2024-01-02T00:00:00 of line 2 (and 1 more",
        ),
        (HEADER + ROWS[0] + "2024-02-30,3,4,5\n", "line 3: Date is '2024-02-30', not a time"),
        (HEADER + ROWS[0] + "2024-02-03T00Z,3,4,5\n", "line 3: the time '2024-02-03T00Z' has a zone, unlike"),
        (HEADER + "yesterday,3,4,5\n", "line 2: Date is 'yesterday', not a time"),
        ("Open,Close\n1,2\n", "line 2: Open is '1', not a time"),
        (HEADER, "has a header but no rows"),
        ("", "is not a CSV file: its first line is ''"),
        ("Some words.\n", "is not a CSV file: its first line is 'Some words.'"),
        ("2024-01-02,1,2\n", "has no header"),
        (HEADER + ROWS[0] + "2024-01-03,1_000,4,5\n", "line 3: Open is '1_000', not a number"),
        (HEADER + ROWS[0] + '2024-01-03,"3,4,5\n' + ROWS[2], "line 3: unexpected end of data"),
        (HEADER + ROWS[0] + '"2024-01-03,3,4,5\n' + ROWS[2] * 20_000, "line 3: unexpected end of data"),
        (HEADER + ROWS[0] + "1" * 200_000 + "\n", "line 3: field larger than field limit"),
        (HEADER + ROWS[0] + "2024-01-03,x" + "1" * 1000 + ",4,5\n", "line 3: Open is 'x111"),
        ("Date" * 50_000 + ",Close\n" + ROWS[0], "line 1: field larger than field limit"),
        ("\nDate,Close,Volume,CLOSE\n" + ROWS[0], "line 2: two columns are named 'CLOSE'"),
        (
            HEADER + ROWS[0] + "1512010112345,3,4,5\n",
            "line 3: Date is '1512010112345', not a time such as 2017-01-31 22:00:00 or 20170131 220000",
        ),
        (
            HEADER + "1512010112,3,4,5\n1512010113000,3,4,5\n",
            "line 3: Date is 1512010113000, which does not count seconds",
        ),
        (
            BAR + "2024-01-02,2,3,1,2\n\n2024-01-03,1,3,1,3.01\n2024-01-04,1,3,2,2\n",
            "line 4: High and Low must enclose Open and Close, got Open 1.0, High 3.0, Low 1.0, Close 3.01 "
            "(and 1 more",
        ),
        (BAR + "2024-01-02,2,1,3,2\n", "line 2: High and Low must enclose Open and Close"),
        (b"Date,Close\n\xff\xfe\x00,1\n", "is not a text file"),
        (HEADER.encode() + ROWS[0].encode() * 10_000 + b"\xff\xfe", "is not a text file"),
    ],
)
def test_a_bad_file_is_one_line_with_its_name(write, text, message):
    path = write(text)
    with pytest.raises(ValueError, match=r"prices\.csv") as caught:
        load_csv(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file[:-20],
        lambda file: file[:10] + b"\xff" * 99,
        lambda file: file[:-8] + bytes(8),
        lambda file: b"Date" + file,
    ],
    ids=["cut", "overwritten", "sums", "another"],
)
def test_a_damaged_gzip_file_is_one_line_with_its_name(write, damage):
    whole = gzip.compress((HEADER + "".join(f"{2000 + i}-01-02,1,{i + 1},0\n" for i in range(999))).encode())
    with pytest.raises(ValueError, match=r"prices\.csv\.gz is not a whole gzip file: .+$"):
        load_csv(write(damage(whole), "prices.csv.gz"))


def test_rounded_bars_are_bars(write):
    text = BAR + "2024-01-02,0.30000000000000004,0.3,0.1,0.09999999999999999\n"
    assert load_csv(write(text)).values[0, 0] > 0.3
    wrong = text.replace("0.1,", "0.31,")
    np.testing.assert_array_equal(load_csv(write(wrong), columns=["Open", "Low"]).values[:, 1], 0.31)


@pytest.mark.parametrize("column", ["High", "Date", ""])
def test_a_missing_column_is_one_line(write, column):
    with pytest.raises(
        ValueError, match=rf"prices.csv: no column '{column}'; there are Open, Close, Volume$"
    ):
        load_csv(write(HEADER + ROWS[0]), columns=["Open", column])


def test_rows_are_put_in_order_where_asked(write):
    path = write(HEADER + ROWS[2] + ROWS[0] + "2024-01-02,8,9,0\n" + ROWS[1])
    with pytest.raises(ValueError, match=r"line 4: repeats the time 2024-01-02T00:00:00 of line 3$"):
        load_csv(path, unsorted="sort")
    for duplicates, opening, line in [("first", [1, 3, 5], 3), ("last", [8, 3, 5], 4)]:
        series = load_csv(path, unsorted="sort", duplicates=duplicates)
        np.testing.assert_array_equal(series.times, at("2024-01-02", "2024-01-03", "2024-01-04"))
        np.testing.assert_array_equal(series.select("Open").values[:, 0], opening)
        np.testing.assert_array_equal(series.lines, [line, 5, 2])
    with pytest.raises(ValueError, match="comes after"):
        load_csv(path, duplicates="first")
    with pytest.raises(ValueError, match="got 'drop' and 'error'"):
        load_csv(path, unsorted="drop")


def test_gaps_are_longer_than_the_usual_step():
    days = at("2024-01-02", "2024-01-03", "2024-01-04", "2024-01-08", "2024-01-09", "2024-01-09T12:00")
    series = Series(("Close",), days, np.ones((6, 1)))
    assert gaps(series) == [(3, days[2], days[3])]
    assert gaps(series[4:]) == []
    assert gaps(Series(("Close",), None, np.ones((6, 1)))) == []


def test_lines_of_the_file(write):
    days = [f"2024-01-0{day},1,2,0\n" for day in (1, 2, 3, 4, 7, 8)]
    series = load_csv(write(HEADER + "\n" + "\n".join(days)))
    np.testing.assert_array_equal(series.lines, [3, 5, 7, 9, 11, 13])
    assert [series.lines[gap.row] for gap in gaps(series)] == [11]
    later = series[1:].select("Close")
    assert [later.lines[gap.row] for gap in gaps(later)] == [11]
    assert Series(("Close",), None, np.ones((6, 1)))[1:].lines is None


def test_rows_and_columns_of_a_series():
    series = Series(("Open", "Close"), at("2024-01-02", "2024-01-03"), np.array([[1.0, 2.0], [3.0, 4.0]]))
    assert len(series) == 2
    np.testing.assert_array_equal(series[1:].values, [[3, 4]])
    np.testing.assert_array_equal(series[1:].times, at("2024-01-03"))
    np.testing.assert_array_equal(series.select("close").values, [[2], [4]])
    with pytest.raises(ValueError, match="no column 'High'; there are Open, Close"):
        series.select("High")
    with pytest.raises(ValueError, match=r"values must be \[T, 1\]"):
        Series(("Close",), None, np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"times must be \[T\]"):
        Series(("Close",), series.times, np.ones((3, 1)))


@pytest.mark.parametrize(
    ("name", "package", "columns", "ends"),
    [
        ("eurusd", "gym_anytrading", 5, ("2017-01-01T22:00:00", "2017-12-29T21:00:00")),
        ("googl", "gym_anytrading", 6, ("2009-05-22", "2018-08-29")),
        ("stocks", "skfolio", 20, ("1990-01-02", "2022-12-28")),
    ],
)
def test_installed_series(name, package, columns, ends):
    if package == "skfolio" and importlib.util.find_spec(package) is None:
        pytest.skip("skfolio is too heavy for the extra `dev`")
    series = load_installed(name)
    assert series.values.shape == (len(series), columns)
    np.testing.assert_array_equal(series.times[[0, -1]], at(*ends))


def test_a_series_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps skfolio$"):
        load_installed("stocks")
    with pytest.raises(ValueError, match="unknown series 'oil'; known: eurusd, googl, stocks"):
        load_installed("oil")


def test_a_package_without_the_file_is_an_error(monkeypatch, tmp_path):
    class Found:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: Found)
    with pytest.raises(ValueError, match="'eurusd' is not in this version of gym-anytrading"):
        load_installed("eurusd")

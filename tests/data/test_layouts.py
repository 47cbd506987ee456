"""Prices as people have them: each layout gives the times and the bars that it was written from."""

import datetime
import json
import pathlib

import numpy as np
import pytest

from btnn_jax.data import load_prices, read_prices

SAMPLES = pathlib.Path(__file__).parent / "samples"
INDEX = json.loads((SAMPLES / "index.json").read_text())


@pytest.mark.parametrize("name", INDEX)
def test_samples_give_their_values(name):
    right, series = INDEX[name], load_prices(SAMPLES / name)
    close = series.select("Close").values[:, 0]
    assert len(series) == right["rows"]
    assert [str(time) for time in series.times[[0, -1]]] == [right["first_time"], right["last_time"]]
    assert (close[0], close[-1]) == (right["first_close"], right["last_close"])
    assert close.sum() == pytest.approx(right["sum_close"], abs=5e-3)
    assert {"Open", "High", "Low", "Close"} <= set(series.names)
    assert not {"Dividends", "Stock Splits", "<SPREAD>"} & set(series.names)


START = datetime.datetime(2024, 1, 29, 22, 0)
HOURS = [START + datetime.timedelta(hours=i) for i in range(60)]
DAYS = [datetime.datetime(2024, 1, 20) + datetime.timedelta(days=i) for i in range(60)]
CLOSES = np.round(1500 + 40 * np.sin(np.arange(60) / 5), 2)
OPENS = np.concatenate([CLOSES[:1], CLOSES[:-1]])
BARS = np.stack(
    [OPENS, np.maximum(OPENS, CLOSES) + 1.25, np.minimum(OPENS, CLOSES) - 1.25, CLOSES], axis=1
).round(2)
VOLUMES = 1000 * np.arange(1, 61) + 7


def write(times, row, header="", newest_first=False, footer=""):
    """A file of one row for each bar, as `row` says of its time, open, high, low, close and volume."""
    lines = []
    for t, bar, v in zip(times, BARS.tolist(), VOLUMES.tolist(), strict=True):
        seconds = int(t.replace(tzinfo=datetime.UTC).timestamp())
        lines.append(
            row.format(
                **dict(zip("ohlc", bar, strict=True)),
                t=t,
                v=v,
                epoch=seconds,
                later=seconds + 3599,
                k=v / 1000,
                clock=int(f"{t:%H%M%S}"),
                k_comma=str(v / 1000).replace(".", ","),
                german=[f"{x:,.2f}".translate(str.maketrans(",.", ".,")) for x in bar],
                french=[f"{x:,.2f}".translate(str.maketrans(",.", "\u202f,")) for x in bar],
                swiss=[f"{x:,.2f}".replace(",", "'") for x in bar],
            )
        )
    return header + "\n".join(lines[::-1] if newest_first else lines) + "\n" + footer


LAYOUTS = {
    "MetaTrader 4": write(HOURS, "{t:%Y.%m.%d,%H:%M},{o},{h},{l},{c},{v}"),
    "MetaTrader 5 without a header": write(HOURS, "{t:%Y.%m.%d\t%H:%M:%S}\t{o}\t{h}\t{l}\t{c}\t{v}\t0\t12"),
    "MetaTrader 5 by the day": write(
        DAYS,
        "{t:%Y.%m.%d}\t{o}\t{h}\t{l}\t{c}\t{v}\t0\t12",
        "<DATE>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>\n",
    ),
    "Kraken": write(HOURS, "{epoch},{o},{h},{l},{c},{v},17"),
    "Binance in microseconds": write(
        HOURS,
        "{epoch}000000,{o},{h},{l},{c},{v},{later}999999,1.5,87,1.0,2.0,0",
    ),
    "Binance with a header": write(
        HOURS,
        "{epoch}000,{o},{h},{l},{c},{v},{later}999,1.5,87,1.0,2.0,0",
        "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,"
        "taker_buy_quote_volume,ignore\n",
    ),
    "HistData for MetaTrader": write(HOURS, "{t:%Y.%m.%d,%H:%M},{o},{h},{l},{c},{v}"),
    "Stooq": write(DAYS, "{t:%Y-%m-%d},{o},{h},{l},{c},{v}", "Date,Open,High,Low,Close,Volume\n"),
    "Stooq in Polish": write(
        DAYS,
        "{t:%Y-%m-%d},{o},{h},{l},{c},{v}",
        "Data,Otwarcie,Najwyzszy,Najnizszy,Zamkniecie,Wolumen\n",
    ),
    "Stooq with a ticker": write(
        HOURS,
        "AAPL.US,60,{t:%Y%m%d,%H%M%S},{o},{h},{l},{c},{v},0",
        "<TICKER>,<PER>,<DATE>,<TIME>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>,<OPENINT>\n",
    ),
    "times of day that have lost their zeros": write(
        HOURS,
        "AAPL.US;60;{t:%Y%m%d};{clock};{o};{h};{l};{c};{v}",
        "<TICKER>;<PER>;<DATE>;<TIME>;<OPEN>;<HIGH>;<LOW>;<CLOSE>;<VOL>\n",
    ),
    "Alpha Vantage": write(
        DAYS,
        "{t:%Y-%m-%d},{o},{h},{l},{c},{c},{v},0.0000,1.0",
        "timestamp,open,high,low,close,adjusted_close,volume,dividend_amount,split_coefficient\n",
        newest_first=True,
    ),
    "Alpha Vantage's JSON as a table": write(
        DAYS, "{t:%Y-%m-%d},{o},{h},{l},{c},{v}", ",1. open,2. high,3. low,4. close,5. volume\n"
    ),
    "Dukascopy": write(
        HOURS,
        "{t:%d.%m.%Y %H:%M:%S}.000 GMT+0000,{o},{h},{l},{c},{v}",
        "Local time,Open,High,Low,Close,Volume\n",
    ),
    "yfinance with a zone": write(
        DAYS,
        "{t:%Y-%m-%d} 00:00:00-05:00,{o},{h},{l},{c},{v},0.0,0.0,0.0",
        "Date,Open,High,Low,Close,Volume,Dividends,Stock Splits,Capital Gains\n",
    ),
    "TradingView with indicators": write(
        HOURS,
        "{t:%Y-%m-%dT%H:%M:%S}Z,{o},{h},{l},{c},NaN,-1.5,{v}",
        "time,open,high,low,close,Plot,MACD,Volume\n",
    ),
    "CryptoDataDownload": write(
        HOURS,
        "{epoch}000,{t:%Y-%m-%d %H:%M:%S},BTC/USD,{o},{h},{l},{c},{v},{v}",
        "https://www.example.com\nunix,date,symbol,open,high,low,close,Volume BTC,Volume USD\n",
        newest_first=True,
    ),
    "Investing.com": write(
        DAYS,
        '"{t:%m/%d/%Y}","{c:,.2f}","{o:,.2f}","{h:,.2f}","{l:,.2f}","{k}K","-0.26%"',
        '\ufeff"Date","Price","Open","High","Low","Vol.","Change %"\n',
        newest_first=True,
    ),
    "Investing.com in German": write(
        DAYS,
        '"{t:%d.%m.%Y}","{german[3]}","{german[0]}","{german[1]}","{german[2]}","{k_comma}K","-0,26%"',
        '"Datum","Zuletzt","Er\u00f6ffn.","Hoch","Tief","Vol.","+/- %"\n',
        newest_first=True,
    ),
    "Nasdaq": write(
        DAYS,
        "{t:%m/%d/%Y},${c},{v},${o},${h},${l}",
        "Date,Close/Last,Volume,Open,High,Low\n",
        newest_first=True,
    ),
    "Barchart with a remark": write(
        DAYS,
        "{t:%m/%d/%Y},{o},{h},{l},{c},1.5,+0.26%,{v}",
        "Time,Open,High,Low,Last,Change,%Chg,Volume\n",
        footer='"Downloaded from Example as of 02-05-2024 04:00pm CST"\n',
    ),
    "Sierra Chart": write(
        HOURS,
        "{t.year}/{t.month}/{t.day}, {t:%H:%M:%S}.0, {o}, {h}, {l}, {c}, {v}, 12, 3, 4",
        "Date, Time, Open, High, Low, Last, Volume, NumberOfTrades, BidVolume, AskVolume\n",
    ),
    "TradeStation": write(
        HOURS,
        "{t:%m/%d/%Y,%H:%M},{o},{h},{l},{c},{v},{v}",
        '"Date","Time","Open","High","Low","Close","Up","Vol"\n',
    ),
    "Interactive Brokers": write(
        HOURS,
        "0,{t:%Y%m%d  %H:%M:%S},{o},{h},{l},{c},{v},1500.1,90",
        ",date,open,high,low,close,volume,average,barCount\n",
    ),
    "GOOGLEFINANCE": write(
        DAYS,
        "{t.month}/{t.day}/{t.year} 16:00:00,{o},{h},{l},{c},{v}",
        "Date,Open,High,Low,Close,Volume\n",
    ),
    "twelve hours": write(HOURS, "{t:%m/%d/%Y %I:%M %p};{o};{h};{l};{c};{v}", "Date;O;H;L;C;V\n"),
    "names of months": write(
        DAYS, '{o},{h},{l},{c},{v},"{t:%b} {t.day}, {t.year}"', "Open,High,Low,Close,Vol,Date\n"
    ),
    "NSE": write(DAYS, "{t:%d-%b-%Y}|EQ|{o}|{h}|{l}|{c}|{v}", "Date|series|OPEN|HIGH|LOW|close|VOLUME\n"),
    "quantmod": write(
        DAYS,
        '"{t:%Y-%m-%d}",{o},{h},{l},{c},{v},{c}',
        '"","AAPL.Open","AAPL.High","AAPL.Low","AAPL.Close","AAPL.Volume","AAPL.Adjusted"\n',
    ),
    "Polygon in nanoseconds": write(
        HOURS,
        "AAPL,{v},{o},{c},{h},{l},{epoch}000000000,87",
        "ticker,volume,open,close,high,low,window_start,transactions\n",
    ),
    "a spreadsheet in French": write(
        DAYS,
        "{t:%d/%m/%Y};{french[0]};{french[1]};{french[2]};{french[3]};{v}",
        "sep=;\nDate;Ouv.;+ Haut;+ Bas;Cl\u00f4ture;Volume\n",
    ),
    "Swiss marks between thousands": write(
        DAYS,
        "{t:%d.%m.%y};{swiss[0]};{swiss[1]};{swiss[2]};{swiss[3]};{v}",
        "Datum;Er\u00f6ffnung;Hoch;Tief;Schluss;Volumen\n",
    ),
    "Japanese": write(
        DAYS,
        "{t:%Y/%m/%d},{o},{h},{l},{c},{v}",
        "\u65e5\u4ed8,\u59cb\u5024,\u9ad8\u5024,\u5b89\u5024,\u7d42\u5024,\u51fa\u6765\u9ad8\n",
    ),
    "separators at the ends of rows": write(
        DAYS, "{t:%Y%m%d},{o},{h},{l},{c},{v},", "Date,Open,High,Low,Close,Volume\n"
    ),
    "ccxt": write(HOURS, "{epoch}000,{o},{h},{l},{c},{v}.5"),
    "MetaStock": write(DAYS, "AAPL,{t:%Y%m%d},{o},{h},{l},{c},{v}"),
    "Bloomberg": write(
        DAYS,
        "{t.month}/{t.day}/{t.year},{o},{h},{l},{c},{v}",
        "Security,EURUSD Curncy\nStart Date,1/20/2024\n\nDate,PX_OPEN,PX_HIGH,PX_LOW,PX_LAST,PX_VOLUME\n",
    ),
    "FXCM": write(
        HOURS,
        "{t:%m/%d/%Y %H:%M},{o},{h},{l},{c},{h},{h},{h},{h},{v}",
        "DateTime,BidOpen,BidHigh,BidLow,BidClose,AskOpen,AskHigh,AskLow,AskClose,Volume\n",
    ),
    "letters": write(
        HOURS,
        "{v},{c},{o},{c},{h},{l},{epoch}000,120",
        "v,vw,o,c,h,l,t,n\n",
    ),
    "OKX": write(
        HOURS,
        "{epoch}000,{o},{h},{l},{c},{v},{v},{v},1",
        "ts,o,h,l,c,vol,volCcy,volCcyQuote,confirm\n",
        newest_first=True,
    ),
    "Tushare": write(
        DAYS,
        "000001.SZ,{t:%Y%m%d},{o},{h},{l},{c},{o},-0.5,-0.03,{v},12345.6",
        "ts_code,trade_date,open,high,low,close,pre_close,change,pct_chg,vol,amount\n",
        newest_first=True,
    ),
    "AKShare": write(
        DAYS,
        "{t:%Y-%m-%d},{o},{c},{h},{l},{v},1.5,-0.2",
        "\u65e5\u671f,\u5f00\u76d8,\u6536\u76d8,\u6700\u9ad8,\u6700\u4f4e,\u6210\u4ea4\u91cf,\u632f\u5e45,\u6da8\u8dcc\u5e45\n",
    ),
    "Tiingo": write(
        DAYS,
        "{t:%Y-%m-%d}T00:00:00.000Z,{c},{h},{l},{o},{v},{c},{h},{l},{o},{v},0.0,1.0",
        "date,close,high,low,open,volume,adjClose,adjHigh,adjLow,adjOpen,adjVolume,divCash,splitFactor\n",
    ),
    "words run together": write(
        DAYS,
        "{t:%d-%b-%y},{o},{h},{l},{c},{v}",
        "TradeDate,OpenPrice,HighPrice,LowPrice,ClosePrice,Quantity\n",
    ),
    "words that say price": write(
        DAYS,
        "{t:%A, %B} {t.day}, {t.year};{o};{h};{l};{c};{v}",
        "Day;price_open;price_high;price_low;price_close;price_volume\n",
    ),
    "fractions of seconds since 1970": write(
        HOURS, "{epoch}.25,{o},{h},{l},{c},{v}", "Timestamp,Open,High,Low,Close,Volume\n"
    ),
    "seconds that are numbers of floating point": write(
        HOURS, "{epoch}.0,{o},{h},{l},{c},{v}", "t,open,high,low,close,volume\n"
    ),
}


HOURS_LATER = {"yfinance with a zone": 5, "GOOGLEFINANCE": 16}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_give_what_they_were_written_from(name, tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text(LAYOUTS[name], encoding="utf-8")
    reading = read_prices(path)
    series = reading.series
    hourly = series.times[1] - series.times[0] < np.timedelta64(1, "D")
    times = np.array(HOURS if hourly else DAYS, "datetime64[s]")
    np.testing.assert_array_equal(series.times, times + np.timedelta64(HOURS_LATER.get(name, 0), "h"))
    np.testing.assert_array_equal(series.select("Open", "High", "Low", "Close").values, BARS)
    volumes = (x for x in ("Tick Volume", "Volume", "Volume BTC", "vol") if x in series.names)
    np.testing.assert_allclose(series.select(next(volumes)).values[:, 0], VOLUMES, atol=0.5)
    newest_first = series.lines[0] > series.lines[-1]
    assert newest_first == (name in NEWEST_FIRST)
    assert newest_first == any("newest first" in note for note in reading.notes)


NEWEST_FIRST = {
    "OKX",
    "Tushare",
    "Alpha Vantage",
    "CryptoDataDownload",
    "Investing.com",
    "Investing.com in German",
    "Nasdaq",
}


def test_newest_first_is_said(tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text(LAYOUTS["Nasdaq"])
    with pytest.warns(UserWarning, match=r"prices\.csv: the rows were newest first and have been sorted"):
        series = load_prices(path)
    assert (np.diff(series.times) > np.timedelta64(0)).all()
    with pytest.raises(
        ValueError, match="line 3: the time 2024-03-18T00:00:00 comes after 2024-03-19T00:00:00"
    ):
        load_prices(path, unsorted="error")


def test_layouts_have_the_names_that_people_know():
    titles = {
        name: read_prices(SAMPLES / f"{name}.csv").layout
        for name in ("metatrader5", "binance_klines", "tradingview")
    }
    assert titles == {
        "metatrader5": "MetaTrader 5",
        "binance_klines": "Binance",
        "tradingview": "TradingView",
    }

"""Files that something has gone wrong with: each gives prices, or one line that says what is wrong with it."""

import gzip
import pathlib
import runpy
import tracemalloc
import warnings

import numpy as np
import pytest

from btnn_jax.data import load_prices

HERE = pathlib.Path(__file__).parent
LAYOUTS, SAMPLES = runpy.run_path(str(HERE / "test_layouts.py"))["LAYOUTS"], HERE / "samples"
WHOLE = [text.encode() for text in LAYOUTS.values()] + [
    path.read_bytes() for path in sorted(SAMPLES.glob("*.csv"))
]
SEPARATORS = (b",", b";", b"\t", b"|")
PIECES = (
    b"", b",", b";", b'"', b"\n", b"\r", b"\0", b"\xff\xfe", b"null", b"NaN", b"-1", b"0", b"1e999", b"inf",
    b"2024-13-45", b"99999999999999999999", b"\xe2\x80\xaf", b"1.234,5", b"1,234.5", b"%s", b"01/02/2024", b"True",
    b"x" * 5000, b"\x1f\x8b",
)  # fmt: skip


def damaged(rng):
    """A file after one to three mishaps."""
    file = WHOLE[rng.integers(len(WHOLE))]
    for _ in range(rng.integers(1, 4)):
        file = MISHAPS[rng.integers(len(MISHAPS))](rng, file)
    return file


def cut(rng, file):
    return file[: rng.integers(len(file) + 1)]


def behead(rng, file):
    return file[rng.integers(len(file) + 1) :]


def insert(rng, file):
    for _ in range(rng.integers(1, 6)):
        at = rng.integers(len(file) + 1)
        file = file[:at] + PIECES[rng.integers(len(PIECES))] + file[at:]
    return file


def replace_cells(rng, file):
    lines = file.split(b"\n")
    separator = max(SEPARATORS, key=file.count)
    for _ in range(rng.integers(1, 6)):
        row = rng.integers(len(lines))
        cells = lines[row].split(separator)
        cells[rng.integers(len(cells))] = PIECES[rng.integers(len(PIECES))]
        lines[row] = separator.join(cells)
    return b"\n".join(lines)


def overwrite(rng, file):
    noise = bytearray(file)
    for _ in range(rng.integers(1, 50)):
        if noise:
            noise[rng.integers(len(noise))] = rng.integers(256)
    return bytes(noise)


def shuffle(rng, file):
    lines = file.split(b"\n")
    rng.shuffle(lines)
    return b"\n".join(lines)


def repeat_lines(rng, file):
    lines = file.split(b"\n")
    row = rng.integers(len(lines))
    return b"\n".join(lines[: row + 1] + [lines[row]] * int(rng.integers(1, 4)) + lines[row:])


def drop_column(rng, file):
    separator = max(SEPARATORS, key=file.count)
    column = rng.integers(12)
    rows = [line.split(separator) for line in file.split(b"\n")]
    return b"\n".join(separator.join(cells[:column] + cells[column + 1 :]) for cells in rows)


def swap_columns(rng, file):
    separator = max(SEPARATORS, key=file.count)
    rows = [line.split(separator) for line in file.split(b"\n")]
    order = rng.permutation(max(map(len, rows)))
    return b"\n".join(separator.join(cells[i] for i in order if i < len(cells)) for cells in rows)


def other_separator(rng, file):
    return file.replace(SEPARATORS[rng.integers(4)], SEPARATORS[rng.integers(4)])


def other_encoding(rng, file):
    text = file.decode("utf-8", "replace")
    return text.encode(
        ("utf-16", "utf-16-le", "utf-32", "cp1252", "shift-jis", "utf-7")[rng.integers(6)], "replace"
    )


def huge(rng, file):
    at = rng.integers(len(file) + 1)
    return file[:at] + b"9" * int(rng.integers(100_000, 2_000_000)) + file[at:]


def binary(rng, file):
    return rng.bytes(int(rng.integers(1, 5000)))


def compress(rng, file):
    return gzip.compress(file, 1)


MISHAPS = (
    cut, cut, behead, insert, insert, replace_cells, replace_cells, replace_cells, overwrite, shuffle, repeat_lines,
    drop_column, swap_columns, other_separator, other_encoding, huge, binary, compress,
)  # fmt: skip


def check(path, seed):
    """Reads one damaged file; returns whether it gave prices."""
    rng = np.random.default_rng(seed)
    path.write_bytes(damaged(rng))
    options = {
        "missing": ("error", "drop", "ffill")[rng.integers(3)],
        "unsorted": ("reverse", "sort", "error")[rng.integers(3)],
        "duplicates": ("error", "first", "last")[rng.integers(3)],
        "day_first": (None, True, False)[rng.integers(3)],
    }
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*newest first", category=UserWarning)
            series = load_prices(path, **options)
    except ValueError as error:
        message = str(error)
        assert str(path) in message, f"seed {seed}: {message}"
        assert "\n" not in message, f"seed {seed}: {message}"
        assert len(message) < 700, f"seed {seed}: {message}"
        return False
    assert len(series)
    assert (np.diff(series.times) > np.timedelta64(0)).all(), f"seed {seed}"
    assert np.isfinite(series.values).all(), f"seed {seed}"
    assert (series.values >= 0).all(), f"seed {seed}"
    return True


def test_a_damaged_file_gives_prices_or_one_line(tmp_path):
    read = sum(check(tmp_path / "prices.csv", seed) for seed in range(300))
    assert 20 < read < 280  # both happen


@pytest.mark.slow
def test_ten_thousand_damaged_files_in_bounded_memory(tmp_path):
    tracemalloc.start()
    read = sum(check(tmp_path / "prices.csv", seed) for seed in range(300, 10_300))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 500 < read < 9500
    assert peak < 200e6

"""Tables in text files: their lines, separator and header, and their columns, read by pandas piece by piece."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import pathlib
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from btnn_jax._errors import first_line, import_extra
from btnn_jax.data.number_format import MISSING, NumberFormat, is_missing, is_number, parse_numbers

__all__ = ["TextTable", "Wanted"]

_SEPARATORS = ("\t", ";", "|", ",")  # a comma may also stand in numbers, so it comes last
_LONGEST = 1_000_000  # characters of a line; of more, a file is not a table
_MOST_COLUMNS = 20_000
_SAMPLE = 2000  # rows that the layout is recognised from
_CHUNK = 100_000  # rows that are read at once
_MOST_CHARACTERS = 20_000_000  # of rows that are read at once
_HEAD = 65_536  # bytes that the encoding is recognised from
_SHOWN = 60  # characters of a cell in a message
_TIME_WIDTH = 48  # characters of a time; the longest known, "01.01.2017 22:00:00.000 GMT-0000", has 32
_WORDS = re.compile(r"[a-z]{3}", re.IGNORECASE)
_TRUTH = re.compile(r"true|false", re.IGNORECASE)  # pandas takes them for 1 and 0
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")


class Wanted(NamedTuple):
    """The columns to read of a table.

    Attributes:
      names: of all columns, for messages; each row must have as many cells.
      numbers: columns of numbers.
      texts: columns of text.
      form: how numbers are written.
    """

    names: Sequence[str]
    numbers: Sequence[int]
    texts: Sequence[int]
    form: NumberFormat


class TextTable:
    """A file of rows of cells; a row is one line.

    Attributes:
      source: what messages call it.
      head: the first rows that are not empty, cells of text.
      separator: between cells.
      encoding: of the text.
      lines: int `[T]`, of the rows, counted from 1; once they are read.
    """

    def __init__(
        self, path: pathlib.Path, *, separator: str | None = None, encoding: str | None = None
    ) -> None:
        self.source = str(path)
        self.path = path
        self.lines = np.empty(0, int)
        self.skipped: list[str] = []  # what was passed over, for people
        self._first = 0  # rows of the header and before it
        self._zipped = path.suffix == ".gz"
        self.encoding = self._recognise_encoding(encoding)
        self._numbers: list[int] = []
        lines = []
        for number, line in _take(self._text(), _SAMPLE):
            self._numbers.append(number)
            lines.append(line)
        first = lines[0].strip("\r\n") if lines else ""
        self.separator = separator or _recognise_separator(lines)
        # Lines above the header that are no table: a title, an address, Excel's sep=;
        before = next((i for i, line in enumerate(lines) if self.separator in line), 0)
        if not lines or len(self._cells(self._numbers[before], lines[before])) < 2:
            raise ValueError(f"{path} is not a CSV file: its first line is {first[:_SHOWN]!r}")
        if before:
            self.skipped.append(f"{before} {'line' if before == 1 else 'lines'} above the table")
        self._first = before
        self.head = []
        for number, line in zip(self._numbers[before:], lines[before:], strict=True):
            try:
                self.head.append(self._cells(number, line))
            except ValueError:
                if len(self.head) < 2:
                    raise
                break  # reading finds it again, unless something before it is wrong too
        if len(self.head[0]) > _MOST_COLUMNS:
            raise ValueError(f"{path} has {len(self.head[0])} columns, at most {_MOST_COLUMNS} can be read")

    def error(self, what: str, rows: Sequence[int] | np.ndarray = (), hint: str = "") -> ValueError:
        """An error of one line; of several rows of the table, the first is named and the others are counted."""
        return self._line_error(what, self.lines[np.asarray(rows, int)], hint)

    def place(self, row: int) -> str:
        """Where a row is, for people."""
        return f"line {self.lines[row]}"

    def header_error(self, what: str, row: int = 0) -> ValueError:
        """An error about a row of `head`."""
        return self._line_error(what, self._numbers[self._first + row : self._first + row + 1])

    def cell(self, row: int, column: int) -> str:
        """The text of one cell of the rows that were read."""
        number = self.lines[row]
        line = next(line for at, line in self._text() if at == number)
        return self._cells(number, line)[column].strip()

    def read(self, header: int, wanted: Wanted) -> dict[int, np.ndarray]:
        """Reads columns: float64 `[T]` of numbers, NaN where one is missing, and str `[T]` of texts.

        Args:
          header: rows of `head` before the first row of numbers.
          wanted: the columns; texts are cut off after 48 characters.

        Raises:
          ValueError: a row is damaged; the message names its line.
        """
        parts: dict[int, list[np.ndarray]] = {i: [] for i in (*wanted.numbers, *wanted.texts)}
        read: list[int] = []

        def add(chunk: list[tuple[int, str]]) -> None:
            for i, values in self._read_chunk(chunk, wanted).items():
                parts[i].append(values)
            read.extend(number for number, _ in chunk)

        rows = itertools.islice(self._text(), self._first + header, None)
        held: tuple[int, str] | None = None  # the last line may be a remark
        while chunk := _take(rows, _CHUNK):
            if held is not None:
                chunk.insert(0, held)
            held = chunk.pop()
            if chunk:
                add(chunk)
        if held is not None and read and self._is_remark(held[1]):
            self.skipped.append(f"line {held[0]}, the last, which is a remark")
        elif held is not None:
            add([held])
        self.lines = np.array(read, int)
        return {i: np.concatenate(part) if part else np.empty(0) for i, part in parts.items()}

    def _read_chunk(self, chunk: list[tuple[int, str]], wanted: Wanted) -> dict[int, np.ndarray]:
        pandas = import_extra("pandas", "reading prices", "data")
        for number, line in chunk:
            if (count := self._count(number, line)) != len(wanted.names):
                raise self._line_error(f"has {count} cells, expected {len(wanted.names)}", [number])
        text = "".join(line if line.endswith(("\n", "\r")) else line + "\n" for _, line in chunk)
        form, numbers, texts = wanted.form, wanted.numbers, wanted.texts
        fast = not (form.thousands or form.marked or _TRUTH.search(text))
        try:
            frame = pandas.read_csv(
                io.StringIO(text),
                sep=self.separator,
                header=None,
                names=range(len(wanted.names)),
                usecols=sorted({*numbers, *texts}),
                index_col=False,
                dtype={**dict.fromkeys(numbers, "float64" if fast else "str"), **dict.fromkeys(texts, "str")},
                na_values=dict.fromkeys(numbers, _MISSING) if fast else None,
                keep_default_na=False,
                skip_blank_lines=False,
                skipinitialspace=True,
                decimal=form.decimal,
                engine="c",
            )
            if len(frame) != len(chunk):
                raise ValueError("a quoted cell has several lines")
        except (ValueError, OverflowError) as error:
            self._find_damage(pandas, chunk, wanted)
            raise ValueError(f"{self.path}: {first_line(error)[:200]}") from None
        found = {}
        for i in numbers:
            if fast:
                found[i] = frame[i].to_numpy(np.float64)
                continue
            found[i], bad = parse_numbers(frame[i], form)
            if bad.any():
                self._find_damage(pandas, chunk, wanted)
        for i in texts:
            found[i] = np.array(frame[i].str.slice(0, _TIME_WIDTH).tolist(), "U")
        return found

    def _count(self, number: int, line: str) -> int:
        if '"' in line or len(line) > csv.field_size_limit():
            return len(self._cells(number, line))
        return line.count(self.separator) + 1

    def _find_damage(self, pandas: Any, chunk: list[tuple[int, str]], wanted: Wanted) -> None:
        """Raises an error about the first row of which a number cannot be read."""
        for number, line in chunk:
            row = self._cells(number, line)
            cells = [row[i] for i in wanted.numbers]
            if wanted.form.decimal == "." and all(is_missing(cell) or _is_plain(cell) for cell in cells):
                continue
            _, bad = parse_numbers(pandas.Series(cells, dtype="str"), wanted.form)
            for i in np.flatnonzero(bad).tolist():
                otherwise = " as the others are written" if is_number(cells[i]) else ""
                name = wanted.names[wanted.numbers[i]]
                raise self._line_error(f"{name} is {cells[i][:_SHOWN]!r}, not a number{otherwise}", [number])

    def _is_remark(self, line: str) -> bool:
        return self.separator not in line and " " in line.strip() and _WORDS.search(line) is not None

    def _recognise_encoding(self, encoding: str | None) -> str:
        """The encoding: UTF-8, UTF-16 with a byte order mark, or Windows-1252 where the first bytes are not UTF-8."""
        try:
            with self._bytes() as file:
                head = file.read(_HEAD)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{self.path} is not a whole gzip file: {error}") from None
        if head.startswith(b"PK\x03\x04"):
            raise ValueError(f"{self.path} is a zip archive or an Excel file: unpack it, or save it as CSV")
        if encoding is not None:
            return encoding
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            return "utf-16"
        try:
            head.decode("utf-8")
        except UnicodeDecodeError as error:
            in_text = error.start < len(head) - 4  # not a letter that the end of `head` divides
            if in_text and not _CONTROL.search(head) and len(head.splitlines()) > 1:
                return "cp1252"
        return "utf-8-sig"

    def _bytes(self) -> Any:
        with open(self.path, "rb") as file:
            zipped = self._zipped or file.read(2) == b"\x1f\x8b"
        opener: Any = gzip.open if zipped else open
        return opener(self.path, "rb")

    def _text(self) -> Iterator[tuple[int, str]]:
        """The lines that are not empty, with their numbers, from 1."""
        try:
            with self._bytes() as file, io.TextIOWrapper(file, encoding=self.encoding, newline="") as lines:
                for number in itertools.count(1):
                    line = lines.readline(_LONGEST)
                    if not line:
                        return
                    if len(line) == _LONGEST:
                        raise self._line_error(f"has more than {_LONGEST} characters", [number])
                    if line.strip("\r\n"):
                        if "\0" in line:
                            raise ValueError(f"{self.path} is not a text file")
                        yield number, line
        except UnicodeError:
            raise ValueError(f"{self.path} is not a text file in {self.encoding}") from None
        except LookupError:
            raise ValueError(f"unknown encoding {self.encoding!r}") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{self.path} is not a whole gzip file: {error}") from None

    def _cells(self, number: int, line: str) -> list[str]:
        try:
            return next(csv.reader([line], delimiter=self.separator, strict=True, skipinitialspace=True))
        except csv.Error as error:
            raise self._line_error(str(error), [number]) from None

    def _line_error(self, what: str, lines: Sequence[int] | np.ndarray, hint: str = "") -> ValueError:
        if not len(lines):
            return ValueError(f"{self.path}: {what}{hint}")
        more = f" (and {len(lines) - 1} more like it)" if len(lines) > 1 else ""
        return ValueError(f"{self.path}, line {lines[0]}: {what}{more}{hint}")


def _take(rows: Iterator[tuple[int, str]], count: int) -> list[tuple[int, str]]:
    """The next rows, at most `count` and fewer where they are long, so that memory stays bounded."""
    taken: list[tuple[int, str]] = []
    characters = 0
    for row in rows:
        taken.append(row)
        characters += len(row[1])
        if len(taken) == count or characters > _MOST_CHARACTERS:
            break
    return taken


_MISSING = sorted(
    {form for word in MISSING for form in (word, word.upper(), word.capitalize(), "NaN", "N/a")}
)


def _is_plain(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text and text.isascii()  # which Python takes for numbers, and pandas does not


def _recognise_separator(lines: Sequence[str]) -> str:
    """The separator that most lines have as often as each other."""
    best, chosen = 0, ","
    for separator in _SEPARATORS:
        counts: dict[int, int] = {}
        for line in lines[:200]:
            outside = re.sub(r'"[^"]*"', "", line) if '"' in line else line
            counts[outside.count(separator)] = counts.get(outside.count(separator), 0) + 1
        counts.pop(0, None)
        agreeing = max(counts.values(), default=0)
        if agreeing > best:
            best, chosen = agreeing, separator
    return chosen

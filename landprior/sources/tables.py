"""Reader of CSV tables as written by Excel, R, pandas and QGIS.

UTF-8 with or without a byte order mark, or UTF-16; commas, semicolons or tabs between columns; decimal points or
commas, and thousands separators, if only one reading is possible. An ambiguous value is an error that names the line
and the value.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from landprior.errors import InputError
from landprior.inputs import read_text
from landprior.raster.scheme import plain_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SUFFIXES = {".csv", ".tsv", ".txt"}
"""Extensions of tables, in lower case."""

_DELIMITERS = (",", ";", "\t")
_PLAIN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_COMMA_GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?")
_DOT_GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+(,\d*)?")
_BLANK_GROUPS = re.compile(r"(?<=\d)[ \u00a0\u2009\u202f'\u2019](?=\d{3}(?!\d))")


@dataclass(frozen=True)
class Row:
    """A row of a table: its line in the file, from 1, its stripped cells, and their number."""

    line: int
    cells: tuple[str, ...]
    width: int


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as read from a file.

    Parameters
    ----------
    path
        The file.
    header
        Names of the columns, stripped.
    rows
        Rows with any value; missing cells are empty.
    points, commas
        Whether numbers in the file show that the decimal separator is a point, or a comma.
    """

    path: Path
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    points: bool = False
    commas: bool = False

    def where(self, row: Row) -> str:
        """Return the location of a row for error messages."""
        return f"{self.path}, line {row.line}"

    def find(self, *names: str) -> int | None:
        """Return the position of the first column with one of some names, ignoring case and spaces.

        Raises
        ------
        InputError
            If several columns have the name.
        """
        for name in names:
            if name in self.header:
                return self.header.index(name)
            found = [i for i, there in enumerate(self.header) if plain_name(there) == plain_name(name)]
            if len(found) > 1:
                several = ", ".join(repr(self.header[i]) for i in found)
                msg = f"{self.path} has several columns {name!r} ({several}); keep one"
                raise InputError(msg)
            if found:
                return found[0]
        return None

    def need(self, *names: str) -> int:
        """Return the position of a column as :meth:`find` does.

        Raises
        ------
        InputError
            If there is no such column, or several.
        """
        found = self.find(*names)
        if found is None:
            there = ", ".join(self.header) or "none"
            msg = f"{self.path} has no column {' or '.join(map(repr, names))}; it has {there}"
            raise InputError(msg)
        return found

    def number(self, row: Row, column: int) -> float:
        """Return the number in a cell, finite.

        Raises
        ------
        InputError
            If it is not a number, or is ambiguous; the message names the line, the column and the value.
        """
        text = row.cells[column]
        found = self.parse(text)
        if found is None:
            why = ", which is ambiguous; write it without thousands separators" if _grouped(text) else ""
            msg = f"{self.where(row)}: {self.header[column] or 'a value'} is {text!r}, not a finite number{why}"
            raise InputError(msg)
        return found

    def integer(self, row: Row, column: int) -> int:
        """Return the whole number in a cell (``11``, ``11.0``).

        Raises
        ------
        InputError
            If it is not a whole number; the message names the line, the column and the value.
        """
        found = self.number(row, column)
        if not found.is_integer():
            msg = f"{self.where(row)}: {self.header[column] or 'a value'} is {row.cells[column]!r}, not a whole number"
            raise InputError(msg)
        return int(found)

    def parse(self, text: str) -> float | None:
        """Return the number in a text of this file; None if it is not a number, infinite or ambiguous."""
        return parse_number(text, points=self.points, commas=self.commas)

    def require_whole_rows(self) -> None:
        """Raise an error for a row with fewer values than the header.

        Raises
        ------
        InputError
            If there is one; the message names the line.
        """
        short = next((row for row in self.rows if row.width < len(self.header)), None)
        if short is not None:
            msg = f"{self.where(short)}: {short.width} columns where the header has {len(self.header)}"
            raise InputError(msg)

    def texts(self, column: int) -> list[str | None]:
        """Return the cells of a column; None where one is empty."""
        return [row.cells[column] or None for row in self.rows]

    def values(self, column: int) -> list[float | str | None]:
        """Return the cells of a column: numbers, texts where a cell is not a number, and None where it is empty."""
        numbers = [self.parse(row.cells[column]) for row in self.rows]
        return [text if number is None else number for text, number in zip(self.texts(column), numbers, strict=True)]


def parse_number(text: str, *, points: bool = False, commas: bool = False) -> float | None:
    """Return the number in a text; None if it is not a number, not finite, or ambiguous.

    Parameters
    ----------
    text
        Text of the number, as written by Excel or another program.
    points, commas
        Whether other numbers in the file show decimal points, or decimal commas.

    Returns
    -------
    float or None
        A finite number.
    """
    text = _BLANK_GROUPS.sub("", text).replace("\u2212", "-")
    several = len(re.findall(r"[.,]", text)) > 1
    if _PLAIN.fullmatch(text) and (not _DOT_GROUPS.fullmatch(text) or not commas):
        pass
    elif _COMMA.fullmatch(text) and (not _COMMA_GROUPS.fullmatch(text) or (commas and not points)):
        text = text.replace(",", ".")
    elif _COMMA_GROUPS.fullmatch(text) and (several or (points and not commas)):
        text = text.replace(",", "")
    elif _DOT_GROUPS.fullmatch(text) and several:
        text = text.replace(".", "").replace(",", ".")
    else:
        return None
    number = float(text)
    return number if abs(number) < float("inf") else None


def read_table(path: str | Path, *, comments: bool = False) -> Table:
    """Read a CSV with a header.

    Parameters
    ----------
    path
        The file.
    comments
        Leave out lines that begin with ``#``.

    Returns
    -------
    Table
        The table; its cells are stripped texts.

    Raises
    ------
    MissingInputError
        If the file does not exist.
    InputError
        If it is not text, has two columns with the same name, or a row longer than the header; the message names the
        line.
    """
    path = Path(path)
    return parse_table(read_text(path), path, comments=comments)


def parse_table(text: str, path: Path, *, comments: bool = False) -> Table:
    """Read a table from its text.

    Parameters
    ----------
    text
        The whole file.
    path
        The file, named in error messages.
    comments
        Leave out lines that begin with ``#``.

    Returns
    -------
    Table
        See :func:`read_table`.

    Raises
    ------
    InputError
        If it has two columns with the same name, or a row longer than the header; the message names the line.
    """
    lines = re.split(r"(?<=\n)", text.replace("\r\n", "\n").replace("\r", "\n"))
    skipped = 0
    delimiter = None
    declared = re.fullmatch(r'"?sep=(.)"?\s*', lines[0]) if lines else None  # Excel's own hint
    if declared is not None:
        delimiter, skipped = declared[1], 1
    content = ["\n" if comments and line.lstrip('"').startswith("#") else line for line in lines[skipped:]]
    rows = _split(content, delimiter or _find_delimiter(content), path, skipped)
    if not rows:
        return Table(path=path, header=(), rows=())
    header, *rest = rows
    used = max((i + 1 for i, name in enumerate(header.cells) if name), default=0)
    width = max([used, *(i + 1 for row in rest for i, cell in enumerate(row.cells[: len(header.cells)]) if cell)])
    names = (*header.cells, *[""] * width)[:width]
    twice = next((name for i, name in enumerate(names) if name and name in names[:i]), None)
    if twice is not None:
        msg = f"{path}, line {header.line}: two columns are named {twice!r}; keep one"
        raise InputError(msg)
    found = []
    for row in rest:
        if any(row.cells[width:]):
            msg = (
                f"{path}, line {row.line}: more values than the header has columns ({len(row.cells)}, not {width}); "
                "quote texts that contain a comma, and use semicolons between columns if decimals have commas"
            )
            raise InputError(msg)
        found.append(replace(row, cells=(*row.cells, *[""] * width)[:width]))
    points, commas = _decimals(cell for row in found for cell in row.cells)
    return Table(path=path, header=names, rows=tuple(found), points=points, commas=commas)


def _split(lines: Sequence[str], delimiter: str, path: Path, before: int) -> list[Row]:
    """Split lines into rows of stripped cells; empty rows are left out."""
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    found = []
    before_limit = csv.field_size_limit(2**31 - 1)  # a text may be longer than the default 131,072
    try:
        for cells in reader:
            row = tuple(cell.strip() for cell in cells)
            if any(row):
                found.append(Row(reader.line_num + before, row, len(row)))
    except csv.Error as error:
        msg = f"{path}, line {reader.line_num + before}: {error}; is a quote not closed?"
        raise InputError(msg) from error
    finally:
        csv.field_size_limit(before_limit)
    return found


def _find_delimiter(lines: Sequence[str]) -> str:
    """Return the column separator: the one that is most frequent in the header and equally frequent in the rows."""
    plain = [line for line in lines if line.strip()][:50]
    if not plain:
        return _DELIMITERS[0]

    def rank(delimiter: str) -> tuple[bool, int]:
        counts = [re.sub(r'"[^"]*"', "", line).count(delimiter) for line in plain]
        return len(set(counts)) == 1 and counts[0] > 0, counts[0]

    return max(_DELIMITERS, key=rank)


def _grouped(text: str) -> bool:
    return any(kind.fullmatch(text.strip()) for kind in (_COMMA, _COMMA_GROUPS, _DOT_GROUPS))


def _decimals(cells: Iterable[str]) -> tuple[bool, bool]:
    """Return whether cells show decimal points, and whether decimal commas."""
    points = commas = False
    for cell in cells:
        if "," not in cell and "." not in cell:
            continue
        text = _BLANK_GROUPS.sub("", cell)
        several = len(re.findall(r"[.,]", text)) > 1
        if _COMMA_GROUPS.fullmatch(text):
            points |= several
        elif _DOT_GROUPS.fullmatch(text):
            commas |= several
        elif _COMMA.fullmatch(text):
            commas = True
        elif _PLAIN.fullmatch(text) and "." in text:
            points = True
    return points, commas

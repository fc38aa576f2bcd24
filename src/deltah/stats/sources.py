"""Columns a user or a probe knows of single calls: CSV or JSON lines with `trajectory`, `call` and further columns.

One row is one call. Numbers and booleans are kept (true, yes and 1 are 1; false, no and 0 are 0); an empty cell, null
and NaN mean "not known". A column without a single number is text and is left out, and so are the columns that
`deltah score --out` writes itself: a label may be added to that very file. A column that mixes numbers and words is
refused, because a typing error would otherwise become a missing label. Text in JSON is text even if it looks like a
number.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from deltah.calls.callfile import FIELDS
from deltah.errors import DataError
from deltah.jsonlines import read_json_objects

CallKey: TypeAlias = tuple[str, str]
"""(trajectory id, call id)."""
CallValues: TypeAlias = Mapping[CallKey, Mapping[str, float]]
"""What is known of single calls, by column name; an absent entry is not known."""

KEY_COLUMNS: Final = ("trajectory", "call")
OWN_COLUMNS: Final = frozenset(FIELDS).difference(KEY_COLUMNS)
"""Columns of `deltah score --out`: signals already, never labels."""
_WORDS: Final = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
_EMPTY: Final = frozenset({"", "nan", "na", "none", "null"})


def read_call_values(
    path: str | os.PathLike[str], *, only: Collection[str] | None = None
) -> dict[CallKey, dict[str, float]]:
    """Read columns of calls from a .csv file, or from JSON lines under any other name (also .gz, .zst).

    Args:
        path: The file.
        only: Columns to read; all but `OWN_COLUMNS` when not given.

    Raises:
        DataError: if the file cannot be read, a row names no call or one that an earlier row has, a column mixes
            numbers and words, or no column of numbers is left.
    """
    name = os.fspath(path)
    is_csv = name.lower().endswith(".csv")
    rows = _csv_rows(name) if is_csv else _json_rows(name)
    lines: dict[CallKey, int] = {}
    cells: dict[str, dict[CallKey, Any]] = {}
    for line, row in rows:
        key = _key(row, f"{name}:{line}")
        first = lines.setdefault(key, line)
        if first != line:
            raise DataError(
                f"{name}:{line}: call {key[1]!r} of trajectory {key[0]!r} stands on line {first} already; "
                "keep one row a call"
            )
        for column, value in row.items():
            if _wanted(column, only):
                cells.setdefault(column, {})[key] = value
    parse = _cell if is_csv else _number
    columns = {column: _column(values, name, column, lines, parse) for column, values in cells.items()}
    found: dict[CallKey, dict[str, float]] = {key: {} for key in lines}
    for column, numbers in columns.items():
        for key, number in numbers.items():
            found[key][column] = number
    if not any(found.values()):
        raise DataError(
            f"{name}: no column of numbers or booleans beside 'trajectory' and 'call'; expected one row a call, "
            "for example: trajectory,call,good"
        )
    return found


def _wanted(column: str, only: Collection[str] | None) -> bool:
    if only is not None:
        return column in only
    return column not in KEY_COLUMNS and column not in OWN_COLUMNS


def _json_rows(name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of JSON lines; a file that does not begin as such may have been meant as something else."""
    begun = False
    try:
        for row in read_json_objects(name):
            begun = True
            yield row
    except DataError as error:
        if begun or isinstance(error.__cause__, OSError):
            raise
        raise DataError(
            f"{name}: its first row is not a JSON object, and its name does not end in .csv; expected one row a call, "
            'either JSON lines such as {"trajectory": "a", "call": "c0", "good": 1}, or comma-separated text with the '
            "header trajectory,call,good in a file that ends in .csv"
        ) from error


def _csv_rows(name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a CSV file with a header, and the line each ends on."""
    try:
        with Path(name).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                if None in row:
                    raise DataError(
                        f"{name}:{reader.line_num}: the row has more cells than the header; quote cells with commas"
                    )
                yield reader.line_num, row
    except OSError as error:
        raise DataError(f"{name}: cannot read it ({error.strerror or error}); check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: the file is not valid UTF-8 text ({error}); save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(
            f"{name}: the file is not readable as CSV ({error}); save it as comma-separated text"
        ) from error


def _key(row: Mapping[str, Any], where: str) -> CallKey:
    trajectory, call = (_identifier(row, column, where) for column in KEY_COLUMNS)
    return trajectory, call


def _identifier(row: Mapping[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        got = f"is {value!r:.60}" if column in row else f"is missing; got the columns {sorted(map(str, row))}"
        raise DataError(f"{where}: column {column!r} {got}; expected the ids that `deltah score --out` writes")
    return str(value)


def _column(
    values: Mapping[CallKey, Any],
    name: str,
    column: str,
    lines: Mapping[CallKey, int],
    parse: Callable[[Any], float | None],
) -> dict[CallKey, float]:
    """Numbers of a column; empty for a column of text."""
    numbers: dict[CallKey, float] = {}
    words: list[CallKey] = []
    for key, value in values.items():
        number = parse(value)
        if number is None:
            words.append(key)
        elif not math.isnan(number):
            numbers[key] = number
    if words and numbers:
        raise DataError(
            f"{name}:{lines[words[0]]}: column {column!r} is {values[words[0]]!r:.60}, elsewhere a number; "
            "expected a finite number, true or false, or nothing"
        )
    return numbers


def _cell(value: str | None) -> float | None:
    """A cell of a CSV file as a number; NaN where it is empty; None for any other text."""
    word = (value or "").strip().lower()
    if word in _EMPTY or word in _WORDS:
        return _WORDS.get(word, math.nan)
    try:
        return _number(float(word))
    except ValueError:
        return None


def _number(value: Any) -> float | None:
    """A JSON value as a number; NaN for null; None for anything else, infinities included."""
    if value is None:
        return math.nan
    if not isinstance(value, bool | int | float):
        return None
    number = float(value)
    return None if math.isinf(number) else number

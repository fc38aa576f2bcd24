"""Rows of a Parquet file that another program wrote, as JSON records, in constant memory.

Nothing is known of the columns: lists and structs become arrays and objects, a missing value null, NaN the constant
that Python's `json` writes, and dates and decimals their text. A file that breaks in the middle yields what could be
read and then one `Line` that says what is wrong.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator

from deltah.database import import_duckdb
from deltah.traces.streams import Line

PARQUET_MAGIC = b"PAR1"
"""First and last bytes of a Parquet file."""

_ROWS = 64
"""Fetched at once: a row may hold a conversation."""


def parquet_rows(path: str | os.PathLike[str]) -> Iterator[Line]:
    """Rows of a Parquet file, numbered from 1."""
    duckdb = import_duckdb("Reading a Parquet file")

    number = 0
    try:
        with duckdb.connect() as database:
            found = database.execute("FROM read_parquet($file)", {"file": glob.escape(os.fspath(path))})
            columns = [column[0] for column in found.description or ()]
            while rows := found.fetchmany(_ROWS):
                for values in rows:
                    number += 1
                    yield Line(number, json.dumps(dict(zip(columns, values, strict=True)), default=str).encode())
    except duckdb.Error as error:
        reason = str(error).strip().splitlines()[0]
        yield Line(number + 1, b"", damage=f"the Parquet file is damaged ({reason}); rows from here on are lost")

"""Lines of JSON objects on disk, for the readers of corpora and task files.

Plain, gzip and Zstandard files are told apart by their first bytes, not by their names. Every failure is one
`DataError` that names file and line; integers are exact at any size. Trace files have a codec of their own in
`deltah.traces`, which goes on after a damaged line; this reader stops, because a corpus or a task file with a hole
would change what is measured.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from deltah.compression import DAMAGE, decompressed
from deltah.errors import DataError

_BOM = b"\xef\xbb\xbf"


def read_json_objects(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a JSONL file with their line numbers, counted from 1; blank lines are skipped but numbered.

    Raises:
        DataError: if the file cannot be opened or is damaged, or a line is not one JSON object in UTF-8.
    """
    name = os.fspath(path)
    number = 0
    try:
        with open(name, "rb") as file:
            for number, line in enumerate(decompressed(file), start=1):
                data = (line.removeprefix(_BOM) if number == 1 else line).strip()
                if data:
                    yield number, _decode(data, f"{name}:{number}")
    except DAMAGE as error:
        raise DataError(
            f"{name}: the compressed stream breaks after line {number} ({error}); copy the file again"
        ) from error
    except OSError as error:
        raise DataError(f"{name}: cannot read it ({error.strerror or error}); check the path") from error


def _decode(data: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(data.decode("utf-8"))
        # A lone surrogate is legal JSON, but no tokenizer and no file takes it.
        if b"\\ud" in data.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError as error:
        raise DataError(f"{where}: the line is not valid UTF-8 text ({error}); save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        hint = "; a JSON array must be written as one object a line" if data[:1] == b"[" else ""
        raise DataError(f"{where}: the line is not JSON ({error}); expected one JSON object a line{hint}") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: got a JSON {type(value).__name__}; expected one JSON object a line")
    return value

"""What a file holds, as a stream of single records: JSON lines, a JSON document, an Inspect log, rows of a table.

The first bytes decide. A text whose first line is only an opening bracket, or opens an array, is one document: an array
gives its elements, an object is one record. Any other text is read line by line in constant memory. Parquet files of
our own traces are not cut into records (`deltah.traces.parquet` reads them); those of other programs are.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import msgspec

from deltah.traces.inspect_files import ZIP_MAGIC, eval_samples, is_json_log
from deltah.traces.sources import reads_once
from deltah.traces.streams import COMPRESSED_MAGICS, MAX_LINE_BYTES, Line, read_lines
from deltah.traces.tables import PARQUET_MAGIC, parquet_rows

_HEAD_BYTES = 1024
_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw])


def open_records(path: str) -> tuple[str, Iterator[Line]]:
    """What a file counts ("line", "sample" or "row"), and its records, numbered from 1; of a pipe, or "-", lines."""
    head = b"" if reads_once(path) else _head(path)
    if head.startswith(ZIP_MAGIC) or is_json_log(head):
        return "sample", eval_samples(path)
    if head.startswith(PARQUET_MAGIC):
        return "row", parquet_rows(path)
    return "line", _text_records(path)


def first_line(path: str) -> bytes | None:
    """First line of an uncompressed file of JSON lines; None for any other file."""
    head = _head(path)
    if head.startswith((ZIP_MAGIC, PARQUET_MAGIC, *COMPRESSED_MAGICS)) or is_json_log(head):
        return None
    line = next(read_lines(path), None)
    whole = line is not None and line.damage is None and line.data != b"{" and line.data[:1] == b"{"
    return line.data if line is not None and whole else None


def _head(path: str) -> bytes:
    """First bytes of a file; none of one that is gone or may not be read: whoever reads its lines says so."""
    try:
        with open(path, "rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""


def _text_records(path: str) -> Iterator[Line]:
    lines = read_lines(path)
    first = next(lines, None)
    if first is None:
        return
    elements = _elements(first.data) if first.data[:1] == b"[" else None
    if first.data == b"{" or (elements is None and first.data[:1] == b"["):
        yield from _document(chain([first], lines))
        return
    whole = elements is not None and all(element[:1] == b"{" for element in elements)
    yield from (Line(number, element) for number, element in enumerate(elements or (), start=1)) if whole else (first,)
    yield from lines


def _elements(data: bytes) -> list[bytes] | None:
    """Elements of a JSON array; None if it is not one."""
    try:
        return [bytes(element).strip() for element in _ELEMENTS.decode(data)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _document(lines: Iterator[Line]) -> Iterator[Line]:
    parts, size = list[bytes](), 0
    for line in lines:
        size += len(line.data)
        if line.damage is not None or size > MAX_LINE_BYTES:
            reason = (
                line.damage or f"the JSON document is larger than {MAX_LINE_BYTES >> 20} MiB; write it as JSON lines"
            )
            yield Line(1, b"", damage=reason)
            return
        parts.append(line.data)
    document = b"\n".join(parts)
    if not document.startswith(b"["):
        yield Line(1, document)
        return
    elements = _elements(document)
    if elements is None:
        yield Line(
            1, b"", damage="the file opens a JSON array but is not one; expected an array of objects, or JSON lines"
        )
        return
    yield from (Line(number, element) for number, element in enumerate(elements, start=1))

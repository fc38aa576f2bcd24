"""What a file holds: JSON lines, or one JSON document, as a stream of single records.

A file whose first line is only an opening bracket, or opens an array, is one document: an array gives its elements, an
object is one record. Anything else is read line by line in constant memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import msgspec

from deltah.traces.streams import MAX_LINE_BYTES, Line, read_lines

_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw])


def read_records(path: str) -> Iterator[Line]:
    """Records of a text file, or of standard input ("-"), numbered from 1."""
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

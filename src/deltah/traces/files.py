"""What a file holds, as a stream of single records: JSON lines, a JSON document, an Inspect log, rows of a table.

A file is opened once and its first bytes decide. A text whose first line is only an opening bracket, or opens an array,
is one document: an array gives its elements, an object is one record. Any other text is read line by line in constant
memory. A stream that ends or breaks in the middle yields what could be read and then one last `Line` that says what is
wrong, instead of an exception.
"""

from __future__ import annotations

import copy
import glob
import io
import json
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, NamedTuple, cast

import msgspec

from deltah.compression import BUFFER_BYTES, DAMAGE, decompressed, zstd
from deltah.traces.sources import STDIN

MAX_LINE_BYTES = 512 * 2**20
"""A longer line is skipped as a problem: a file without line breaks must not fill the memory."""
PARQUET_MAGIC: Final = b"PAR1"
"""First bytes of a Parquet file."""

_ZIP_MAGIC = b"PK\x03\x04"
_ZSTANDARD = 93
"""Compression method of a zip's member, which `zipfile` reads from Python 3.14 on, and of one frame only."""
_SAMPLE = re.compile(r"samples/[^/]*\.json|samples/.*_epoch_\d+\.json")
_CHUNKED = re.compile(r"samples/.*_epoch_\d+/sample\.json")
_SPACE = re.compile(r"[ \t\r\n]*")
_HEAD_BYTES = 1024
_FETCHED_ROWS = 64
"""Of a table, at once: a row may hold a conversation."""
_BOM = b"\xef\xbb\xbf"
_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw])


class Position(NamedTuple):
    """Where a record stands."""

    file: str
    """As the caller named it; "-" is standard input."""
    number: int
    """Counted from 1, blank lines included."""
    unit: str = "line"
    """What is counted: lines, samples of an archive, rows of a table."""

    def __str__(self) -> str:
        """Words for a message."""
        return f"{self.file}, {self.unit} {self.number}"


@dataclass(frozen=True, slots=True)
class Line:
    """One record: a line that is not blank, an element of a document, a sample of an archive, a row of a table."""

    number: int
    """Counted from 1, blank lines included."""
    data: bytes
    complete: bool = True
    """False for a last line without a line break."""
    damage: str | None = None
    """Why `data` cannot be trusted; None for a sound line."""
    unit: str = "line"


@contextmanager
def opened(path: str) -> Iterator[io.BufferedReader]:
    """A file, a pipe, or standard input ("-")."""
    if path == STDIN:
        stdin: Any = sys.stdin.buffer
        yield stdin if isinstance(stdin, io.BufferedReader) else io.BufferedReader(stdin)
    else:
        with open(path, "rb", buffering=BUFFER_BYTES) as raw:
            yield cast(io.BufferedReader, raw)


def head_of(raw: io.BufferedReader) -> bytes:
    """First bytes of a file, which stay there to be read."""
    return raw.peek(_HEAD_BYTES)[:_HEAD_BYTES]


def text_records(raw: io.BufferedReader) -> Iterator[Line]:
    """Records of a text, which may be compressed."""
    lines = read_lines(raw)
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


def read_lines(raw: io.BufferedReader) -> Iterator[Line]:
    """Lines of a text, which may be compressed; blank lines are skipped but numbered."""
    number = 0
    try:
        stream = decompressed(raw)
        while piece := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            ended = piece.endswith(b"\n")
            if len(piece) > MAX_LINE_BYTES:
                while not ended and (piece := stream.readline(MAX_LINE_BYTES)):
                    ended = piece.endswith(b"\n")
                reason = f"the line is longer than {MAX_LINE_BYTES >> 20} MiB; expected one trace a line"
                yield Line(number, b"", complete=ended, damage=reason)
            elif data := (piece.removeprefix(_BOM) if number == 1 else piece).strip():
                yield Line(number, data, complete=ended)
    except DAMAGE as error:
        yield _lost(number + 1, f"the compressed stream is damaged, or ends in the middle ({error})")
    except OSError as error:
        yield _lost(number + 1, str(error))


def table_rows(path: str) -> Iterator[Line]:
    """Rows of a Parquet file that another program wrote, as JSON records, in constant memory.

    Nothing is known of the columns: lists and structs become arrays and objects, a missing value null, NaN the constant
    that Python's `json` writes, and dates and decimals their text.
    """
    import duckdb

    number = 0
    try:
        with duckdb.connect() as database:
            found = database.execute("FROM read_parquet($file)", {"file": glob.escape(path)})
            columns = [column[0] for column in found.description or ()]
            while rows := found.fetchmany(_FETCHED_ROWS):
                for values in rows:
                    number += 1
                    row = json.dumps(dict(zip(columns, values, strict=True)), default=str)
                    yield Line(number, row.encode(), unit="row")
    except duckdb.Error as error:
        reason = f"the Parquet file is damaged ({str(error).strip().splitlines()[0]}); rows from here on are lost"
        yield Line(number + 1, b"", damage=reason, unit="row")


def _lost(number: int, reason: str) -> Line:
    return Line(number, b"", complete=False, damage=f"{reason}; lines from here on are lost")


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
            limit = f"the JSON document is larger than {MAX_LINE_BYTES >> 20} MiB; write it as JSON lines"
            yield Line(1, b"", damage=line.damage or limit)
            return
        parts.append(line.data)
    document = b"\n".join(parts)
    if not document.startswith(b"["):
        yield Line(1, document)
        return
    elements = _elements(document)
    if elements is None:
        reason = "the file opens a JSON array but is not one; expected an array of objects, or JSON lines"
        yield Line(1, b"", damage=reason)
        return
    yield from (Line(number, element) for number, element in enumerate(elements, start=1))


def is_inspect_log(head: bytes) -> bool:
    """Whether a file that begins like this is a log of Inspect: an archive (`.eval`), or one document (`.json`)."""
    start = head.removeprefix(_BOM).lstrip()[:200]
    return head.startswith(_ZIP_MAGIC) or bool(re.match(rb'\{\s*"version"\s*:\s*\d+\s*,\s*"status"\s*:\s*"', start))


def inspect_samples(raw: io.BufferedReader) -> Iterator[Line]:
    """Samples of a log of Inspect, each the JSON text of an EvalSample.

    An archive is read one member at a time, a document is held in memory as a whole. What is damaged, and a sample in
    the chunked shape of `inspect log convert-chunked`, is a `Line` without data; the others still come.
    """
    samples = _archived(raw) if head_of(raw).startswith(_ZIP_MAGIC) else _listed(raw)
    number = 0
    for number, (data, damage) in enumerate(samples, start=1):
        yield Line(number, data, damage=damage, unit="sample")
    if number == 0:
        nothing = "the log holds no samples (log_samples=False, or its header alone?)"
        yield Line(1, b"", damage=nothing, unit="sample")


def _archived(raw: io.BufferedReader) -> Iterator[tuple[bytes, str | None]]:
    try:
        archive = zipfile.ZipFile(raw)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        yield b"", f"the zip is cut off or damaged ({error}); copy the log again"
        return
    # A name that occurs twice stands for the later member.
    for info in {info.filename: info for info in archive.infolist()}.values():
        if _SAMPLE.fullmatch(info.filename):
            try:
                yield _unpacked(archive, info), None
            except (zipfile.BadZipFile, RuntimeError, OSError, struct.error, *DAMAGE) as error:
                yield b"", f"{info.filename}: the member of the zip is damaged ({error})"
        elif _CHUNKED.fullmatch(info.filename):
            yield b"", f"{info.filename}: Inspect's chunked shape is not read; use the original log"


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if max(info.file_size, info.compress_size) > MAX_LINE_BYTES:
        raise zipfile.BadZipFile(f"longer than {MAX_LINE_BYTES >> 20} MiB")
    if info.compress_type != _ZSTANDARD:
        return archive.read(info)
    packed = copy.copy(info)
    packed.compress_type, packed.file_size = zipfile.ZIP_STORED, info.compress_size
    del packed.CRC
    with archive.open(packed) as stored, zstd.ZstdFile(stored) as unpacked:
        data: bytes = unpacked.read(info.file_size + 1)
    if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
        raise zipfile.BadZipFile("its content does not match its checksum")
    return data


def _listed(raw: io.BufferedReader) -> Iterator[tuple[bytes, str | None]]:
    """Elements of the top-level array `samples` of a document."""
    text, decoder = raw.read().decode("utf-8-sig", errors="replace"), json.JSONDecoder()
    try:
        at = _first_sample(text, decoder)
        while at is not None:
            _, stop = decoder.raw_decode(text, at)
            yield text[at:stop].encode(), None
            at = _next(text, stop, "]")
    except (ValueError, RecursionError) as error:
        yield b"", f"the document is cut off or damaged ({error}); samples from here on are lost"


def _first_sample(text: str, decoder: json.JSONDecoder) -> int | None:
    at: int | None = _expect(text, 0, "{")
    while at is not None:
        key, at = decoder.raw_decode(text, at)
        at = _expect(text, at, ":")
        if key == "samples" and text.startswith("[", at):
            at = _expect(text, at, "[")
            return None if text.startswith("]", at) else at
        _, at = decoder.raw_decode(text, at)
        at = _next(text, at, "}")
    return None


def _next(text: str, at: int, end: str) -> int | None:
    """Index of the next element; None where there is none."""
    at = _skip(text, at)
    return None if text.startswith(end, at) else _expect(text, at, ",")


def _expect(text: str, at: int, sign: str) -> int:
    """Index after a sign and the white space around it."""
    at = _skip(text, at)
    if not text.startswith(sign, at):
        raise ValueError(f"expected {sign!r} at character {at}")
    return _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()

"""Byte streams under the codec: lines of plain, gzip and Zstandard files in constant memory, and compressing writers.

Compression is recognised by the first bytes, not by the name. A stream that ends or breaks in the middle yields what
could be read and then one last `Line` that says what is wrong, instead of an exception.
"""

from __future__ import annotations

import gzip
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, NamedTuple, TypeAlias

from deltah.zstd import zstd

MAX_LINE_BYTES = 512 * 2**20
"""A longer line is skipped as a problem: a file without line breaks must not fill the memory."""

_CHUNK_BYTES = 2**18
COMPRESSED_MAGICS = _GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
"""First bytes of gzip and Zstandard streams."""
_BOM = b"\xef\xbb\xbf"
FileId: TypeAlias = tuple[int, int]
"""Device and number of a file; see `file_id`."""


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
    """One line that is not blank."""

    number: int
    """Counted from 1, blank lines included."""
    data: bytes
    complete: bool = True
    """False for a last line without a line break."""
    damage: str | None = None
    """Why `data` cannot be trusted; None for a sound line."""


def read_lines(path: str) -> Iterator[Line]:
    """Lines of a file, or of standard input ("-"); blank lines are skipped but numbered."""
    return _split(_chunks(sys.stdin.buffer) if path == "-" else _opened(path))


def read_span(path: str, start: int, stop: int, first: int, file: FileId) -> Iterator[Line]:
    """Lines in bytes [start, stop) of an uncompressed file, of which the first has the number `first`.

    A file that is another one by now, or ends before `stop`, is damaged.
    """
    return _split(_span(path, start, stop, file), first)


def file_id(raw: IO[bytes]) -> FileId:
    """What tells an open file from another one of its name: a log that is rotated goes on in a new file."""
    found = os.fstat(raw.fileno())
    return found.st_dev, found.st_ino


def _opened(path: str) -> Iterator[bytes]:
    with open(path, "rb") as raw:
        yield from _chunks(raw)


def _span(path: str, start: int, stop: int, file: FileId) -> Iterator[bytes]:
    with open(path, "rb") as raw:
        if file_id(raw) != file:
            raise _Damaged("another file took the place of this one while it was read")
        raw.seek(start)
        left = stop - start
        while left > 0 and (chunk := raw.read(min(_CHUNK_BYTES, left))):
            left -= len(chunk)
            yield chunk.removeprefix(_BOM) if raw.tell() == len(chunk) else chunk
        if left > 0:
            raise _Damaged("the file became shorter while it was read")


@contextmanager
def open_compressed_writer(raw: IO[bytes], suffix: str) -> Iterator[IO[bytes]]:
    """Stream that compresses into `raw` as a file suffix asks (`.gz`, `.zst`, anything else: not at all)."""
    if suffix == ".gz":
        # mtime 0 and no name: the same trajectories give the same bytes.
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
            yield packed  # type: ignore[misc]  # a GzipFile writes bytes, but is no IO by its type
    elif suffix == ".zst":
        with zstd.ZstdFile(raw, "w") as packed_zst:
            yield packed_zst  # type: ignore[misc]  # as above
    else:
        yield raw


class _Damaged(Exception):
    """A stream that ends or breaks in the middle."""


def _chunks(raw: IO[bytes]) -> Iterator[bytes]:
    """Decompressed bytes, without a byte order mark before them."""
    chunks = _decompressed(raw)
    yield next(chunks, b"").removeprefix(_BOM)
    yield from chunks


def _decompressed(raw: IO[bytes]) -> Iterator[bytes]:
    chunk = raw.read(_CHUNK_BYTES)
    if chunk.startswith(_GZIP_MAGIC):
        yield from _gunzip(chunk, raw)
    elif chunk.startswith(_ZSTD_MAGIC):
        yield from _unzstd(chunk, raw)
    else:
        while chunk:
            yield chunk
            chunk = raw.read(_CHUNK_BYTES)


def _gunzip(first: bytes, raw: IO[bytes]) -> Iterator[bytes]:
    """Decompress all members of a gzip stream, each step bounded in memory."""
    chunk, unpacker, inside = first, zlib.decompressobj(wbits=31), False
    while chunk:
        try:
            out = unpacker.decompress(chunk, _CHUNK_BYTES)
        except zlib.error as error:
            raise _Damaged(f"the gzip stream is damaged ({error})") from error
        if out:
            yield out
        inside = not unpacker.eof
        if unpacker.eof:
            chunk = unpacker.unused_data.lstrip(b"\x00")  # padding between members is legal
            unpacker = zlib.decompressobj(wbits=31)
        else:
            chunk = unpacker.unconsumed_tail
        chunk = chunk or raw.read(_CHUNK_BYTES)
    if inside:
        raise _Damaged("the gzip stream ends in the middle (incomplete copy or interrupted writer?)")


def _unzstd(first: bytes, raw: IO[bytes]) -> Iterator[bytes]:
    """Decompress all frames of a Zstandard stream, each step bounded in memory."""
    chunk, unpacker, inside = first, zstd.ZstdDecompressor(), False
    while chunk or not unpacker.needs_input:
        try:
            out = unpacker.decompress(chunk, _CHUNK_BYTES)
        except zstd.ZstdError as error:
            raise _Damaged(f"the Zstandard stream is damaged ({error})") from error
        if out:
            yield out
        inside, chunk = not unpacker.eof, b""
        if unpacker.eof:
            chunk, unpacker = unpacker.unused_data, zstd.ZstdDecompressor()
        if not chunk and unpacker.needs_input:
            chunk = raw.read(_CHUNK_BYTES)
    if inside:
        raise _Damaged("the Zstandard stream ends in the middle (incomplete copy or interrupted writer?)")


def _split(chunks: Iterator[bytes], first: int = 1) -> Iterator[Line]:
    number, parts, size, damage = first, list[bytes](), 0, None
    try:
        for chunk in chunks:
            pieces = chunk.split(b"\n")
            for piece in pieces[:-1]:
                line = _join(number, parts, piece, size)
                parts, size, number = [], 0, number + 1
                if line is not None:
                    yield line
            size += len(pieces[-1])
            parts = [*parts, pieces[-1]] if size <= MAX_LINE_BYTES else []
    except (_Damaged, OSError) as error:
        damage = str(error)
    last = _join(number, parts, b"", size)
    if damage is not None:
        yield Line(number, b"", complete=False, damage=f"{damage}; lines from here on are lost")
    elif last is not None:
        yield Line(number, last.data, complete=False, damage=last.damage)


def _join(number: int, parts: list[bytes], piece: bytes, size: int) -> Line | None:
    """Assemble a line from its pieces; None if it is blank."""
    if size + len(piece) > MAX_LINE_BYTES:
        return Line(
            number, b"", damage=f"the line is longer than {MAX_LINE_BYTES >> 20} MiB; expected one trace a line"
        )
    data = b"".join([*parts, piece]).strip() if parts else piece.strip()
    return Line(number, data) if data else None

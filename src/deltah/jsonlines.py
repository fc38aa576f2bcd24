"""Compressed streams, and lines of JSON objects in corpora and task files.

Gzip and Zstandard are detected from the first bytes of a file, not from its name. `read_json_objects` stops at the
first fault: a corpus or a task file with a hole would change what is measured.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final, cast

from deltah.errors import DataError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["BUFFER_BYTES", "DAMAGE", "compressed", "decompressed", "read_json_objects", "zstd"]

DAMAGE: Final = (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError)
"""What reading a stream raises that ends or breaks in the middle."""
BUFFER_BYTES: Final = 2**18
"""Of a stream whose lines are long."""
_BOM = b"\xef\xbb\xbf"
_UTF16 = dict.fromkeys((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16") | {
    bracket.encode(encoding): encoding for bracket in "{[" for encoding in ("utf-16-le", "utf-16-be")
}
_GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class _Pieces(io.RawIOBase):
    """Content of a compressed stream, piece by piece, so that a break costs nothing that came before it."""

    def __init__(self, file: gzip.GzipFile | zstd.ZstdFile) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto1(buffer)


def decompressed(raw: io.BufferedReader) -> io.BufferedReader:
    """Content of a stream, whether it is compressed or not."""
    head = raw.peek(len(_ZSTD_MAGIC))
    if head.startswith(_GZIP_MAGIC):
        return io.BufferedReader(_Pieces(gzip.GzipFile(fileobj=raw)), BUFFER_BYTES)
    if head.startswith(_ZSTD_MAGIC):
        return io.BufferedReader(_Pieces(zstd.ZstdFile(raw)), BUFFER_BYTES)
    return raw


def as_utf8(stream: io.BufferedReader) -> io.BufferedReader:
    """Lines of a text in UTF-8, also where it begins with a byte order mark or a bracket in UTF-16."""
    encoding = _UTF16.get(stream.peek(2)[:2])
    if encoding is None:
        return stream
    return io.BufferedReader(_Recoded(io.TextIOWrapper(stream, encoding, errors="replace", newline="")), BUFFER_BYTES)


class _Recoded(io.RawIOBase):
    """Bytes of a text in UTF-8."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._left = b""

    def readable(self) -> bool:
        """Say that it can be read, as a buffer asks."""
        return True

    def readinto(self, into: Any) -> int:
        """Fill a buffer as far as there is text."""
        self._left = self._left or self._text.read(BUFFER_BYTES).encode("utf-8", errors="replace")
        given, self._left = self._left[: len(into)], self._left[len(into) :]
        into[: len(given)] = given
        return len(given)


@contextmanager
def compressed(raw: IO[bytes], suffix: str) -> Iterator[IO[bytes]]:
    """Stream that compresses into `raw` according to a file's suffix (`.gz`, `.zst`; any other: not at all)."""
    if suffix == ".gz":
        # mtime 0 and no name: the same content gives the same bytes.
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as gzip_file:
            yield cast(IO[bytes], gzip_file)
    elif suffix == ".zst":
        with zstd.ZstdFile(raw, mode="w") as zstd_file:
            yield cast(IO[bytes], zstd_file)
    else:
        yield raw


def read_json_objects(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a JSONL file with their line numbers from 1; a `DataError` for a line that is no object in UTF-8."""
    name = os.fspath(path)
    number = 0
    try:
        with open(name, "rb") as file:
            for number, line in enumerate(decompressed(file), start=1):
                if data := (line.removeprefix(_BOM) if number == 1 else line).strip():
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
        hint = "; a JSON array must be written as one object per line" if data[:1] == b"[" else ""
        raise DataError(f"{where}: the line is not JSON ({error}); expected one JSON object per line{hint}") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: got a JSON {type(value).__name__}; expected one JSON object per line")
    return value

"""Compressed streams: gzip and Zstandard, read by their first bytes and written by a file's suffix.

Zstandard is the standard library's module from Python 3.14 on, its backport before: `zstd` here is either.
"""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final, cast

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["DAMAGE", "compressed", "decompressed", "zstd"]

DAMAGE: Final = (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError)
"""What reading a stream raises that ends or breaks in the middle."""
BUFFER_BYTES: Final = 2**18
"""Of a stream whose lines are long."""
_GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class _Pieces(io.RawIOBase):
    """What a compressed stream gives, piece by piece, so that a break costs nothing that came before it."""

    def __init__(self, file: gzip.GzipFile | zstd.ZstdFile) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def decompressed(raw: io.BufferedReader) -> io.BufferedReader:
    """The content of a stream, whether it is compressed or not; the first bytes are looked at and not taken."""
    head = raw.peek(len(_ZSTD_MAGIC))
    if head.startswith(_GZIP_MAGIC):
        return io.BufferedReader(_Pieces(gzip.GzipFile(fileobj=raw)), BUFFER_BYTES)
    if head.startswith(_ZSTD_MAGIC):
        return io.BufferedReader(_Pieces(zstd.ZstdFile(raw)), BUFFER_BYTES)
    return raw


@contextmanager
def compressed(raw: IO[bytes], suffix: str) -> Iterator[IO[bytes]]:
    """Stream that compresses into `raw` as a file's suffix asks (`.gz`, `.zst`, anything else: not at all)."""
    if suffix == ".gz":
        # mtime 0 and no name: the same content gives the same bytes.
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
            yield cast(IO[bytes], packed)
    elif suffix == ".zst":
        with zstd.ZstdFile(raw, mode="w") as packed_zst:
            yield cast(IO[bytes], packed_zst)
    else:
        yield raw

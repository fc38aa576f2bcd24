"""Logs that lie in a folder twice, plain and compressed: what is the same data is read once.

Log rotation compresses a file after copying it, so `a.jsonl` and `a.jsonl.gz` may hold the same lines, two days' lines,
or the same up to where one of them was cut off or has grown since. Their content decides: of files of one name but for
`.gz` and `.zst`, one whose content is the beginning of another's is a copy of that one and is left out. Nothing is lost
by that, and files that differ are both read. The comparison ends at the first difference; of copies it takes as long as
decompressing them, which reading them would take as well. Files that the user named are never left out.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import combinations
from typing import IO, Final, NamedTuple

from deltah.traces.sources import Source, reads_once, uncompressed
from deltah.traces.streams import COMPRESSED_MAGICS
from deltah.zstd import zstd

_BLOCK_BYTES: Final = 2**18
_GZIP_MAGIC, _ZSTD_MAGIC = COMPRESSED_MAGICS


class Copy(NamedTuple):
    """A file that was left out."""

    path: str
    of: str
    """The file that holds all that it holds."""

    def __str__(self) -> str:
        """Words for a message."""
        return f"{self.path} (repeats {self.of})"


def without_copies(sources: Iterable[Source], left_out: list[Copy]) -> Iterator[Source]:
    """Sources in order, without copies of others among them; files are compared when the first of a name is reached.

    Args:
        sources: All files of a reading.
        left_out: Gets the copies.
    """
    listed = list(sources)
    namesakes: dict[str, list[Source]] = defaultdict(list)
    for source in listed:
        namesakes[uncompressed(os.path.abspath(source.path))].append(source)
    decided: dict[str, dict[str, str]] = {}
    for source in listed:
        name = uncompressed(os.path.abspath(source.path))
        if name not in decided:
            decided[name] = _copies(namesakes[name])
        if (of := decided[name].get(source.path)) is None:
            yield source
        else:
            left_out.append(Copy(source.path, of))


def _copies(files: list[Source]) -> dict[str, str]:
    """Of files of one name, those to leave out, each with the one that holds its content."""
    found: dict[str, str] = {}
    for a, b in combinations([file for file in files if not reads_once(file.path)], 2):
        if a.path in found or b.path in found or (a.named and b.named):
            continue
        whole = _in_common(a.path, b.path)
        # Of two equal files the first is read: the plain one, which several processes can share.
        if whole.b and not b.named:
            found[b.path] = a.path
        elif whole.a and not a.named:
            found[a.path] = b.path
    return found


@dataclass(slots=True)
class _Whole:
    """Which of two files the other one begins with; none that is empty, of which nothing can be told."""

    a: bool = False
    b: bool = False


def _in_common(a: str, b: str) -> _Whole:
    with ExitStack() as stack:
        try:
            first, second = (_Content(stack.enter_context(open(path, "rb"))) for path in (a, b))
        except OSError:
            return _Whole()
        same = False
        while (left := first.ahead()) and (right := second.ahead()):
            n = min(len(left), len(right))
            if left[:n] != right[:n]:
                return _Whole()
            first.take(n)
            second.take(n)
            same = True
        return _Whole(a=same and not first.ahead(), b=same and not second.ahead())


class _Content:
    """Decompressed bytes of a file; one that breaks in the middle ends there, as it does for whoever reads it."""

    def __init__(self, raw: IO[bytes]) -> None:
        magic = raw.read(len(_ZSTD_MAGIC))
        raw.seek(0)
        self._file: IO[bytes] | gzip.GzipFile | zstd.ZstdFile = raw
        if magic.startswith(_GZIP_MAGIC):
            self._file = gzip.GzipFile(fileobj=raw)
        elif magic == _ZSTD_MAGIC:
            self._file = zstd.ZstdFile(raw)
        self._ahead = b""

    def ahead(self) -> bytes:
        """Bytes that come next; none at the end."""
        if not self._ahead:
            with suppress(OSError, EOFError, zlib.error, zstd.ZstdError):
                self._ahead = self._file.read1(_BLOCK_BYTES)  # type: ignore[union-attr]
        return self._ahead

    def take(self, n: int) -> None:
        """Go on behind the next n bytes."""
        self._ahead = self._ahead[n:]

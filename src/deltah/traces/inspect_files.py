r"""Samples of an Inspect log file, one at a time: `.eval` (a zip) and `.json` (one document), told apart by content.

* `.eval`: members `samples/<id>_epoch_<n>.json`, each an EvalSample. inspect_ai compresses them with Zstandard (zip
  method 93, which Python's zipfile reads from 3.14 on only; several frames a member), earlier releases with deflate.
  Members are read one by one; a name that occurs twice stands for the later member, as for every zip reader.
* a zip that ends in the middle has lost its directory: its members are then found by their own headers, in order.
* `.json`: the array `samples`. The document is held in memory as a whole; `inspect log convert --to eval` makes an
  .eval.

Nothing is lost unannounced: a member that is damaged, a sample in the chunked shape (`inspect log convert-chunked`,
experimental) and a file without samples each come out as a `Line` with `damage`, and the others still come.
"""

from __future__ import annotations

import io
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

from deltah.compression import zstd
from deltah.errors import DataError
from deltah.traces.files import MAX_LINE_BYTES, Line

ZIP_MAGIC = b"PK\x03\x04"
"""First bytes of an .eval file."""

_STORED, _DEFLATED, _ZSTANDARD = 0, 8, 93
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_DATA_DESCRIPTOR = 0x08
_ZIP64 = 0xFFFFFFFF
_SAMPLE = re.compile(r"samples/[^/]*\.json|samples/.*_epoch_\d+\.json")
_CHUNKED = re.compile(r"samples/.*_epoch_\d+/sample\.json")
_SPACE = re.compile(r"[ \t\r\n]*")


class _Entry(NamedTuple):
    """Where a zip member lies."""

    name: str
    offset: int
    """Of its local header."""
    method: int
    packed: int
    """Bytes in the file."""
    size: int
    crc: int


class _Sample(NamedTuple):
    """One sample of a log."""

    data: bytes
    damage: str | None = None


class _Damaged(Exception):
    """A member that cannot be read."""


def eval_samples(path: str | os.PathLike[str]) -> Iterator[Line]:
    """Samples of a log, in the order of the file.

    Args:
        path: An `.eval` or `.json` log.

    Yields:
        Samples numbered from 1, each the JSON text of an EvalSample; what is damaged has no data.

    Raises:
        DataError: if the file cannot be opened.
    """
    try:
        raw = open(path, "rb")  # noqa: SIM115  # closed below, after the last sample
    except OSError as error:
        raise DataError(f"cannot read {os.fspath(path)}: {error.strerror or error}; expected an Inspect log") from error
    with raw:
        magic = raw.read(len(ZIP_MAGIC))
        raw.seek(0)
        samples = _zip_samples(raw) if magic == ZIP_MAGIC else _json_samples(raw)
        number = 0
        for number, (data, damage) in enumerate(samples, start=1):
            yield Line(number, data, damage=damage, unit="sample")
        if number == 0:
            yield Line(
                1, b"", damage="the log holds no samples (log_samples=False, or its header alone?)", unit="sample"
            )


def is_json_log(head: bytes) -> bool:
    """Whether a file that begins like this is an Inspect log in JSON, rather than lines of traces.

    Args:
        head: The first kilobytes of the file.
    """
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:200]
    return bool(re.match(rb'\{\s*"version"\s*:\s*\d+\s*,\s*"status"\s*:\s*"', start))


def _zip_samples(raw: IO[bytes]) -> Iterator[_Sample]:
    damage = None
    try:
        with zipfile.ZipFile(raw) as archive:
            listed = [
                _Entry(i.filename, i.header_offset, i.compress_type, i.compress_size, i.file_size, i.CRC)
                for i in archive.infolist()
            ]
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        listed, damage = [*_walk(raw)], f"the zip is cut off or damaged ({error}); samples after the last one are lost"
    for entry in {entry.name: entry for entry in listed}.values():
        if _SAMPLE.fullmatch(entry.name):
            yield _member(raw, entry)
        elif _CHUNKED.fullmatch(entry.name):
            yield _Sample(b"", f"{entry.name}: Inspect's chunked shape is not read; use the original log")
    if damage is not None:
        yield _Sample(b"", damage)


def _walk(raw: IO[bytes]) -> Iterator[_Entry]:
    """Members found by their local headers, up to the first that is cut off or does not state its size."""
    end, offset = raw.seek(0, os.SEEK_END), 0
    while True:
        raw.seek(offset)
        header = raw.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(ZIP_MAGIC):
            return
        _, _, flags, method, _, _, crc, packed, size, n_name, n_extra = _LOCAL_HEADER.unpack(header)
        name, extra = raw.read(n_name).decode("utf-8", errors="replace"), raw.read(n_extra)
        if packed == _ZIP64 or size == _ZIP64:
            size, packed = _zip64_sizes(extra)
        body = offset + _LOCAL_HEADER.size + n_name + n_extra
        if flags & _DATA_DESCRIPTOR or body + packed > end:
            return
        yield _Entry(name, offset, method, packed, size, crc)
        offset = body + packed


def _zip64_sizes(extra: bytes) -> tuple[int, int]:
    """(size, packed size) from the extra field of a large member; an impossible size if it is not there."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1 and length >= 16 and at + 20 <= len(extra):
            size, packed = struct.unpack_from("<QQ", extra, at + 4)
            return int(size), int(packed)
        at += 4 + length
    return 2**63, 2**63


def _member(raw: IO[bytes], entry: _Entry) -> _Sample:
    try:
        return _Sample(_unpack(raw, entry))
    except (_Damaged, OSError, zlib.error, EOFError, zstd.ZstdError) as error:
        return _Sample(b"", f"{entry.name}: the member of the zip is damaged ({error})")


def _unpack(raw: IO[bytes], entry: _Entry) -> bytes:
    raw.seek(entry.offset)
    header = raw.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(ZIP_MAGIC):
        raise _Damaged("no header where the directory says")
    if entry.packed > MAX_LINE_BYTES or entry.size > MAX_LINE_BYTES:
        raise _Damaged(f"longer than {MAX_LINE_BYTES >> 20} MiB")
    raw.seek(sum(_LOCAL_HEADER.unpack(header)[-2:]), os.SEEK_CUR)
    packed = raw.read(entry.packed)
    if entry.method == _STORED:
        data = packed
    elif entry.method == _DEFLATED:
        data = zlib.decompressobj(wbits=-15).decompress(packed, entry.size + 1)
    elif entry.method == _ZSTANDARD:
        with zstd.ZstdFile(io.BytesIO(packed)) as unpacked:
            data = unpacked.read(entry.size + 1)
    else:
        raise _Damaged(f"compression method {entry.method} is unknown")
    if len(data) != entry.size or zlib.crc32(data) != entry.crc:
        raise _Damaged("its content does not match its checksum")
    return data


def _json_samples(raw: IO[bytes]) -> Iterator[_Sample]:
    """Walk the document's top level to `samples`, then its elements."""
    text = raw.read().decode("utf-8-sig", errors="replace")
    decoder = json.JSONDecoder()
    try:
        at = _elements(text, decoder)
        while at is not None:
            _, stop = decoder.raw_decode(text, at)
            yield _Sample(text[at:stop].encode())
            at = _next_element(text, stop)
    except (ValueError, RecursionError) as error:
        yield _Sample(b"", f"the document is cut off or damaged ({error}); samples from here on are lost")


def _elements(text: str, decoder: json.JSONDecoder) -> int | None:
    """Index of the first element of the top-level array `samples`; None if there is none."""
    at = _expect(text, 0, "{")
    while True:
        key, at = decoder.raw_decode(text, at)
        at = _expect(text, at, ":")
        if key == "samples" and text.startswith("[", at):
            at = _skip(text, at + 1)
            return None if text.startswith("]", at) else at
        _, at = decoder.raw_decode(text, at)
        at = _skip(text, at)
        if text.startswith("}", at):
            return None
        at = _expect(text, at, ",")


def _next_element(text: str, at: int) -> int | None:
    at = _skip(text, at)
    return None if text.startswith("]", at) else _expect(text, at, ",")


def _expect(text: str, at: int, sign: str) -> int:
    """Index after a sign and the white space around it."""
    at = _skip(text, at)
    if not text.startswith(sign, at):
        raise ValueError(f"expected {sign!r} at character {at}")
    return _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()

"""Files: which ones a user means, and what each holds as a stream of single records.

A file is opened once and its first bytes decide. A text whose first line is only an opening bracket, or opens an array,
is one document; any other text is read line by line in constant memory. A stream that ends or breaks in the middle
yields what could be read, then one `Line` that says what is wrong.
"""

from __future__ import annotations

import copy
import glob
import io
import json
import os
import re
import struct
import sys
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import msgspec

from deltah.errors import DataError
from deltah.jsonlines import BUFFER_BYTES, DAMAGE, as_utf8, decompressed, zstd

STDIN: Final = "-"
MAX_LINE_BYTES = 512 * 2**20  # a longer line is a problem: a file without line breaks must not fill the memory
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".log", ".txt", ".eval", ".parquet")
_COMPRESSED = (".gz", ".zst")
_ROTATED = re.compile(rf"(.+(?:{'|'.join(map(re.escape, _SUFFIXES))}))[.-](\d[\dT_.:-]*)", re.IGNORECASE)
_DATE_DIGITS = 6  # a shorter number counts how often a log was rotated since
_NOT_TRACES = frozenset({"metrics.jsonl", "run.json", "status.json", "report.json", "study.json"})
_ZIP_MAGIC, _PARQUET_MAGIC = b"PK\x03\x04", b"PAR1"
_ZSTANDARD = 93  # compression method that `zipfile` reads from Python 3.14 on, and of one frame only
_INSPECT = re.compile(rb'\{\s*"version"\s*:\s*\d+\s*,\s*"status"\s*:\s*"')
_SAMPLE = re.compile(r"samples/[^/]*\.json|samples/.*_epoch_\d+\.json")
_CHUNKED = re.compile(r"samples/.*_epoch_\d+/sample\.json")
_SIGN = re.compile(r"\s*[{\[,:]?\s*")
_HEAD_BYTES = 1024
_FETCHED_ROWS = 64  # of a table at once: a row may hold a conversation
_BOM = b"\xef\xbb\xbf"
_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw])
_TOP_LEVEL = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RAW = msgspec.json.Decoder(dict[str, msgspec.Raw] | list[msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Source:
    """One file to read; one that the user did not name may be something else, such as tasks or a corpus."""

    path: str
    named: bool


class Position(NamedTuple):
    """Where a record stands: the line, sample or row of a file, counted from 1, blank lines included."""

    file: str
    number: int
    unit: str = "line"
    part: int | None = None
    """Of several records inside one, counted from 1."""

    @property
    def default_id(self) -> str:
        """Id of a trajectory whose record has none: file name and number."""
        part = "" if self.part is None else f".{self.part}"
        return f"{'stdin' if self.file == STDIN else Path(self.file).name}:{self.number}{part}"


@dataclass(frozen=True, slots=True)
class Line:
    """One record: a line that is not blank, an element of a document, a sample of an archive, a row of a table."""

    number: int
    data: bytes
    complete: bool = True
    """False for a last line without a line break."""
    damage: str | None = None
    """Why `data` cannot be trusted; None for a sound line."""
    unit: str = "line"


def reads_once(path: str) -> bool:
    """Whether what was read of a path is gone: standard input, a pipe or a device."""
    return path == STDIN or (os.path.exists(path) and not os.path.isfile(path))


def expand(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Source]:
    """Files behind paths, each once, in the order given; those of one rotated log from the oldest to the newest."""
    listed = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found: dict[str, Source] = {}
    for path in listed:
        for source in _sources(os.fspath(path)):
            key = STDIN if source.path == STDIN else os.path.realpath(source.path)
            if key not in found or source.named:  # in its first place, but as a file that was named
                found[key] = source
    logs: dict[str, list[Source]] = defaultdict(list)
    for source in sorted(found.values(), key=lambda source: _age(source.path), reverse=True):
        logs[base_name(source.path)].append(source)  # the oldest last
    return [logs[base_name(source.path)].pop() for source in found.values()]


def _sources(path: str) -> list[Source]:
    if path == STDIN:
        return [Source(path, True)]
    if os.path.isdir(path):
        inside = [Source(str(file), False) for file in _files_in(Path(path))]
        if not inside:
            raise DataError(f"{path} holds no trace files; expected files such as .jsonl, .jsonl.gz, .parquet or .eval")
        return inside
    if not os.path.lexists(path) and glob.has_magic(path):
        matches = [match for match in sorted(glob.glob(path, recursive=True)) if not os.path.isdir(match)]
        if not matches:
            raise DataError(
                f"no file matches {path}; check the pattern, and quote it so that the shell leaves it alone"
            )
        return [Source(match, False) for match in matches]
    try:
        if not reads_once(path):
            open(path, "rb").close()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; expected a file of traces or logs") from error
    return [Source(path, True)]


def _files_in(folder: Path) -> Iterator[Path]:
    runs = {manifest.parent for manifest in folder.rglob("run.json")}
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or file.name.startswith(".") or file.name in _NOT_TRACES:
            continue
        run = next((parent for parent in file.parents if parent in runs), None)
        inside = run is None or file.relative_to(run).parts[0] in ("traces", "eval")
        if inside and base_name(file.name).lower().endswith(_SUFFIXES):
            yield file


def base_name(path: str) -> str:
    """A path as it was before the file was compressed and rotated."""
    return _base_and_turn(path)[0]


def _age(path: str) -> tuple[int, int, str, str]:
    """Key of a file among those of its log: by falling number, by date, and the newest, which has neither."""
    _, turn = _base_and_turn(path)
    if turn.isdecimal() and len(turn) < _DATE_DIGITS:
        return 0, -int(turn), "", path
    return (1, 0, turn, path) if turn else (2, 0, "", path)


def _base_and_turn(path: str) -> tuple[str, str]:
    """A path before it was compressed and rotated, and the number or date that the rotation gave it."""
    while path.lower().endswith(_COMPRESSED):
        path = os.path.splitext(path)[0]
    rotated = _ROTATED.fullmatch(path)
    return (path, "") if rotated is None else (rotated[1], rotated[2])


@contextmanager
def opened(path: str) -> Iterator[io.BufferedReader]:
    """A file, a pipe, or standard input ("-")."""
    if path == STDIN:
        stdin: Any = sys.stdin.buffer
        yield stdin if isinstance(stdin, io.BufferedReader) else io.BufferedReader(stdin)
    else:
        with open(path, "rb", buffering=BUFFER_BYTES) as raw:
            yield cast(io.BufferedReader, raw)


def is_table(path: str, raw: io.BufferedReader) -> bool:
    """Whether an opened file is Parquet."""
    return not reads_once(path) and _head(raw).startswith(_PARQUET_MAGIC)


def records(path: str, raw: io.BufferedReader) -> Iterator[Line]:
    """Records of an opened file, by its first bytes; what can be read only once is text."""
    if is_table(path, raw):
        return table_rows(path)
    if not reads_once(path) and is_inspect_log(_head(raw)):
        return inspect_samples(raw)
    return text_records(raw)


def _head(raw: io.BufferedReader) -> bytes:
    """First bytes of a file, which stay there to be read."""
    return raw.peek(_HEAD_BYTES)[:_HEAD_BYTES]


def text_records(raw: io.BufferedReader) -> Iterator[Line]:
    """Records of a text, which may be compressed: of a document, or one per line."""
    lines = _lines(raw)
    first = next(lines, None)
    if first is None:
        return
    second = next(lines, None) if first.data[:1] in (b"{", b"[") and not _is_json(first.data) else None
    rest = lines if second is None else chain([second], lines)
    if second is not None and (first.data[-1:] in b"{[,:" or second.data[:1] not in (b"{", b"[")):
        yield from _document(chain([first], rest))
        return
    elements = _elements(first.data)
    yield from [first] if elements is None else (Line(n, element) for n, element in enumerate(elements, start=1))
    yield from rest


def _lines(raw: io.BufferedReader) -> Iterator[Line]:
    """Lines of a text, which may be compressed; blank lines are skipped but numbered."""
    number, damage = 0, None
    try:
        # JSON in plain UTF-8, as most logs are, needs no further look.
        stream = raw if raw.peek(2)[:2] in (b'{"', b"[{") else as_utf8(decompressed(raw))
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
        damage = f"the compressed stream is damaged, or ends in the middle ({error})"
    except OSError as error:
        damage = str(error)
    if damage is not None:
        yield Line(number + 1, b"", complete=False, damage=f"{damage}; lines from here on are lost")


def _is_json(data: bytes) -> bool:
    try:
        return bool(_RAW.decode(data))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _elements(data: bytes) -> list[bytes] | None:
    """Records of a JSON array; None if it is none, or if it is one record: a list of messages."""
    try:
        elements = [bytes(element).strip() for element in _ELEMENTS.decode(data)]
        names = _TOP_LEVEL.decode(elements[0]).keys() if elements and elements[0][:1] == b"{" else ()
        is_message = "role" in names or {"type", "content"} <= set(names)  # LangChain's
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return None if is_message or any(element[:1] != b"{" for element in elements) else elements


def _document(lines: Iterator[Line]) -> Iterator[Line]:
    """Records of a document: an array, an object, or objects one after another."""
    document = bytearray()
    for line in lines:
        document += line.data + b"\n"
        if line.damage is not None or len(document) > MAX_LINE_BYTES:
            limit = f"the JSON document is larger than {MAX_LINE_BYTES >> 20} MiB; write it as JSON lines"
            yield Line(1, b"", damage=line.damage or limit)
            return
    data = bytes(document)
    is_whole = _is_json(data)
    if data[:1] == b"[" and not is_whole:
        reason = "the file opens a JSON array but is not one; expected an array of objects, or JSON lines"
        yield Line(1, b"", damage=reason)
        return
    elements = (_elements(data) or [data]) if is_whole else _values(data)
    yield from (Line(number, element) for number, element in enumerate(elements, start=1))


def _values(data: bytes) -> Iterator[bytes]:
    """JSON values that stand one after another; what is none comes last, as it is."""
    text, at, decode = data.decode("utf-8", errors="replace").strip(), 0, json.JSONDecoder().raw_decode
    while at < len(text):
        try:
            _, stop = decode(text, at)
        except (ValueError, RecursionError):
            stop = len(text)
        yield text[at:stop].encode()
        at = stop + len(text[stop:]) - len(text[stop:].lstrip())


def table_rows(path: str) -> Iterator[Line]:
    """Rows of a Parquet file of another program, as JSON records, in constant memory; dates and decimals as text."""
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


def is_inspect_log(head: bytes) -> bool:
    """Whether the first bytes are of a log of Inspect: an archive (`.eval`), or one document (`.json`)."""
    return head.startswith(_ZIP_MAGIC) or bool(_INSPECT.match(head.removeprefix(_BOM).lstrip()))


def inspect_samples(raw: io.BufferedReader) -> Iterator[Line]:
    """Samples of a log of Inspect, each the JSON text of an EvalSample; what is damaged is a `Line` without data."""
    samples = _archived(raw) if _head(raw).startswith(_ZIP_MAGIC) else _listed(raw)
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
    text, decode = raw.read().decode("utf-8-sig", errors="replace"), json.JSONDecoder().raw_decode
    try:
        at, key = _past(text, 0), None
        while key != "samples" or not text.startswith("[", at):
            if key is not None:
                at = _past(text, decode(text, at)[1])
            if text.startswith("}", at):
                return
            key, at = decode(text, at)
            at = _past(text, at)
        at = _past(text, at)
        while not text.startswith("]", at):
            _, stop = decode(text, at)
            yield text[at:stop].encode(), None
            at = _past(text, stop)
    except (ValueError, RecursionError) as error:
        yield b"", f"the document is cut off or damaged ({error}); samples from here on are lost"


def _past(text: str, at: int) -> int:
    """Index after a sign of JSON that opens or separates values, and the white space around it."""
    match = _SIGN.match(text, at)
    return at if match is None else match.end()

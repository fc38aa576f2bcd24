"""Parts of logs that can be decoded by themselves, so that several processes share one log.

A part is a run of whole lines of an uncompressed file, or the rows of a Parquet file of ours that lie together. Lines
that are trajectories become so in the part; API calls are decoded there and left, with what little is kept of them, to
the process that joins them in their order. Compressed files, pipes, documents and streams logged one chunk a line have
no parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from deltah.core.types import Trajectory
from deltah.errors import DataError
from deltah.traces.containers import first_line
from deltah.traces.formats import decodes_alone
from deltah.traces.parquet import holds_traces, row_ranges, stamp
from deltah.traces.reading import Counts, Pass, ReadOptions
from deltah.traces.sources import Source, reads_once
from deltah.traces.streams import FileId, Position, file_id, read_span

PART_BYTES: Final = 32 * 2**20
"""Of a part made of lines; it ends after the last line break in it. Each part pays anew for what a pass begins with."""

_SCANNED_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class LinePart:
    """Bytes [start, stop) of a file: whole lines, of which the first is line number `first`."""

    path: str
    start: int
    stop: int
    first: int
    file: FileId
    """That the lines were found in."""


@dataclass(frozen=True, slots=True)
class RowPart:
    """Some rows of a Parquet file of ours."""

    path: str
    rows: range
    stamp: tuple[int, ...]
    """Of the file that the rows were counted in, see `deltah.traces.parquet.stamp`."""


Part: TypeAlias = LinePart | RowPart


def parts_of(source: Source, options: ReadOptions) -> Iterator[Part] | None:
    """Parts of a file in order, found as they are asked for; None if it has to be read as a whole."""
    if reads_once(source.path):
        return None
    if holds_traces(source.path):
        return _row_parts(source.path)
    line = first_line(source.path)
    return _line_parts(source.path) if line is not None and decodes_alone(line, options.format) else None


def read_part(part: Part, options: ReadOptions) -> tuple[Iterator[Trajectory], Counts]:
    """Trajectories of a part, and what is met beside them: complete once those are read.

    Raises:
        DataError: from the iteration, at the first problem if `strict`.
    """
    one = Pass(options, alone=True)
    return _read(one, part), one.met


def _read(one: Pass, part: Part) -> Iterator[Trajectory]:
    if isinstance(part, RowPart):
        if stamp(part.path) == part.stamp:
            yield from one.table(part.path, part.rows)
        else:
            where = Position(part.path, part.rows.start + 1, "row")
            one.report(where, f"the file was changed while it was read; its rows up to {part.rows.stop:,} are lost")
    else:
        for line in read_span(part.path, part.start, part.stop, part.first, part.file):
            yield from one.record(line, Position(part.path, line.number))
        yield from one.finish()


def _row_parts(path: str) -> Iterator[Part]:
    found = stamp(path)
    try:
        ranges = row_ranges(path)
    except DataError:
        ranges = [range(0)]  # whoever reads it reports what is wrong
    return (RowPart(path, rows, found) for rows in ranges)


def _line_parts(path: str) -> Iterator[Part]:
    """Cut a file after the last line break before `PART_BYTES`; a line without one goes with those before it."""
    start, cut, end, first, breaks = 0, 0, 0, 1, 0
    with open(path, "rb") as file:
        found = file_id(file)
        while block := file.read(min(PART_BYTES, _SCANNED_BYTES)):
            if end + len(block) - start > PART_BYTES and cut > start:
                yield LinePart(path, start, cut, first, found)
                start, first, breaks = cut, first + breaks, 0
            if (last := block.rfind(b"\n")) >= 0:
                cut, breaks = end + last + 1, breaks + block.count(b"\n")
            end += len(block)
    if end > start:
        yield LinePart(path, start, end, first, found)

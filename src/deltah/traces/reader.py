"""Trajectories from files, streamed: one record in memory at a time, whatever the size and number of the files.

Gzip, Zstandard, zip and Parquet are recognised by their first bytes, formats by their content, "-" is standard input.
Nothing is lost unannounced: a record that cannot be read, a line cut off by an interrupted writer and a damaged
compressed stream each become a `ReadProblem`; a file of a folder that holds no traces is listed in `skipped`. API calls
are joined into conversations across the files of one reader, as logs rotate.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from deltah.core.types import Trajectory
from deltah.errors import DataError, DeltahError
from deltah.traces.containers import open_records
from deltah.traces.formats import Format, Importer, ImportOptions, Pending, detect, make_importer, parse_format
from deltah.traces.parquet import holds_traces, read_parquet
from deltah.traces.sources import STDIN, expand
from deltah.traces.streams import Line, Position

MAX_KEPT_PROBLEMS = 1000
"""Problems kept in full; all are counted."""

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


@dataclass(frozen=True, slots=True)
class ReadProblem:
    """One record that could not be read."""

    file: str
    """As the caller named it; "-" is standard input."""
    line: int
    """Counted from 1; of a file without lines, the number of the sample or row."""
    reason: str
    unit: str = "line"

    def __str__(self) -> str:
        """One line for a terminal."""
        return f"{self.file}, {self.unit} {self.line}: {self.reason}"


class TraceReader(Iterable[Trajectory]):
    """Trajectories of files, in order, read as they are asked for.

    Each iteration starts anew and resets the counts; standard input can be iterated once.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        format: str | None = None,
        strict: bool = False,
        on_error: Callable[[ReadProblem], None] | None = None,
        vocab_size: int | None = None,
        join: bool = True,
        skip: Sequence[str] = (),
    ) -> None:
        """Prepare to read; see `read_traces` for the arguments and errors."""
        self.strict = strict
        self._format = None if format is None else parse_format(format)
        self._options = ImportOptions(vocab_size=vocab_size, join=join)
        self._skip = tuple(skip)
        self.sources = expand(paths)
        self._on_error = on_error
        self._started = False
        self._reset()

    def _reset(self) -> None:
        self.n_read = 0
        self.n_problems = 0
        self.n_unjoined = 0
        """API calls whose history holds an assistant's turn that the log does not."""
        self.n_branches = 0
        """Retries and forks that were not continued, each a trajectory of its own."""
        self.skipped: list[str] = []
        """Files of a folder or pattern that hold no traces."""
        self._problems: list[ReadProblem] = []
        self._importers: dict[Format, Importer] = {}

    @property
    def problems(self) -> tuple[ReadProblem, ...]:
        """Problems met so far, at most `MAX_KEPT_PROBLEMS` of them; `n_problems` counts all."""
        return tuple(self._problems)

    def __iter__(self) -> Iterator[Trajectory]:
        """Yield the trajectories that can be read.

        Raises:
            DataError: at the first problem if `strict`, or if standard input is read a second time.
        """
        if self._started and any(source.path == STDIN for source in self.sources):
            raise DataError("standard input was already read; keep its trajectories, or save them to a file first")
        self._started = True
        self._reset()
        return self._trajectories()

    def _trajectories(self) -> Iterator[Trajectory]:
        end = Position("", 0)
        for source in self.sources:
            if source.path != STDIN and holds_traces(source.path):
                yield from self._table(source.path)
                continue
            unit, records = open_records(source.path)
            last = self._format
            for record in records:
                end = Position(source.path, record.number, unit)
                try:
                    pending, last = self._add(record, last, end)
                except DeltahError as error:
                    if not source.named and last is None and _is_foreign(record):
                        self.skipped.append(source.path)
                        break
                    self._report(end, _with_hint(record, str(error)))
                    continue
                yield from self._build(pending)
        yield from self._finish(end)

    def _table(self, path: str) -> Iterator[Trajectory]:
        """Trajectories of a Parquet file of ours."""

        def report(row: int, reason: str) -> None:
            self._report(Position(path, row, "row"), reason)

        try:
            for trajectory in read_parquet(path, skip=self._skip, on_error=report):
                self.n_read += 1
                yield trajectory
        except DataError as error:
            if self.strict:
                raise
            report(1, str(error))

    def _add(self, record: Line, last: Format | None, where: Position) -> tuple[Iterable[Pending], Format]:
        """Try the format of the record before first: detection costs a pass over the record."""
        if record.damage is not None:
            raise DataError(record.damage)
        if last is None:
            last = detect(record.data)
            return self._importer(last).add(record.data, where), last
        try:
            return self._importer(last).add(record.data, where), last
        except DataError:
            if self._format is not None:
                raise
            found = detect(record.data)
            if found is last:
                raise
            return self._importer(found).add(record.data, where), found

    def _finish(self, end: Position) -> Iterator[Trajectory]:
        for importer in self._importers.values():
            try:
                yield from self._build(importer.finish(end))
            except DataError as error:
                self._report(end, str(error))
            self.n_unjoined += importer.n_unjoined
            self.n_branches += importer.n_branches

    def _build(self, pending: Iterable[Pending]) -> Iterator[Trajectory]:
        for one in pending:
            try:
                trajectory = one.build()
            except DataError as error:
                self._report(one.where, str(error))
                continue
            self.n_read += 1
            yield trajectory

    def _importer(self, fmt: Format) -> Importer:
        if fmt not in self._importers:
            self._importers[fmt] = make_importer(fmt, self._options)
        return self._importers[fmt]

    def _report(self, where: Position, reason: str) -> None:
        problem = ReadProblem(where.file, where.number, reason, where.unit)
        if self.strict:
            raise DataError(str(problem))
        self.n_problems += 1
        if len(self._problems) < MAX_KEPT_PROBLEMS:
            self._problems.append(problem)
        if self._on_error is not None:
            self._on_error(problem)


def read_traces(
    paths: Paths,
    *,
    format: str | None = None,
    strict: bool = False,
    on_error: Callable[[ReadProblem], None] | None = None,
    vocab_size: int | None = None,
    join: bool = True,
    skip: Sequence[str] = (),
) -> TraceReader:
    """Read the trajectories of files.

    Args:
        paths: A file (plain, gzip or Zstandard, told apart by content), a folder, a glob pattern, "-" for standard
            input, or several of them.
        format: Name of a `Format`; None: each record's format is detected from its content.
        strict: Stop with an error at the first record that cannot be read, instead of counting it.
        on_error: Called with each problem as it is met.
        vocab_size: V for logs whose records do not state it.
        join: Whether API calls of one conversation, logged one a line, become one trajectory.
        skip: Fields of `deltah.traces.parquet.OPTIONAL` that the caller does not need: Parquet is then read faster.

    Returns:
        An iterable of `Trajectory` that carries `.problems`, `.n_problems`, `.n_read`, `.n_unjoined`, `.n_branches` and
        `.skipped`.

    Raises:
        DataError: if a file does not exist or may not be read, or a folder holds none; later, from the iteration, if
            `strict`.
        InvalidValueError: if the format is unknown or the vocabulary size not positive.
    """
    return TraceReader(
        paths, format=format, strict=strict, on_error=on_error, vocab_size=vocab_size, join=join, skip=skip
    )


def _is_foreign(record: Line) -> bool:
    """Whether a file's first record is sound but of no known format: tasks or a corpus beside the traces."""
    if record.damage is not None:
        return False
    try:
        detect(record.data)
    except DataError:
        return True
    return False


def _with_hint(record: Line, reason: str) -> str:
    if record.complete or record.damage is not None:
        return reason
    return f"the last line is cut off (interrupted writer?): {reason}"

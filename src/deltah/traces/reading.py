"""One pass over records: each is given to the importer of its format, and what is lost on the way is counted.

A pass may read a whole log, or parts of one in several processes (`deltah.traces.parts`): then each part has a pass of
its own, and a record that others complete is left for the pass that reads the log in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from heapq import merge
from typing import NamedTuple

import msgspec

from deltah.core.types import Trajectory
from deltah.errors import DataError, DeltahError
from deltah.traces.copies import Copy
from deltah.traces.decode import decode_line
from deltah.traces.dialogue import Exchange, NeedsOthers
from deltah.traces.formats import ChatLogs, Importer, ImportOptions, Pending, make_importer
from deltah.traces.importing import detect
from deltah.traces.parquet import read_parquet
from deltah.traces.sources import Source, base_name
from deltah.traces.streams import Line, Position

_ANY_OBJECT = msgspec.json.Decoder(dict[str, object])
MAX_KEPT_PROBLEMS = 1000
"""Problems kept in full; all are counted."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How logs are read."""

    format: str | None = None
    """None: told from the content of each record."""
    strict: bool = False
    """Stop at the first record that cannot be read."""
    imports: ImportOptions = field(default_factory=ImportOptions)
    skip: tuple[str, ...] = ()
    """Fields of `deltah.traces.parquet.OPTIONAL` to leave out of Parquet."""


class LeftRecord(NamedTuple):
    """A record that others complete, decoded if it is an API call."""

    where: Position
    record: Line | Exchange


@dataclass(slots=True)
class Counts:
    """What a pass met beside the trajectories it gave."""

    n_read: int = 0
    n_problems: int = 0
    n_unjoined: int = 0
    """API calls whose history holds an assistant's turn that the log does not."""
    n_branches: int = 0
    """Retries and forks that were not continued, each a trajectory of its own."""
    skipped: list[str] = field(default_factory=list)
    """Files of a folder or pattern that hold no traces."""
    copies: list[Copy] = field(default_factory=list)
    """Files of a folder or pattern that were left out, as others hold what they hold."""
    problems: list[ReadProblem] = field(default_factory=list)
    """The first `MAX_KEPT_PROBLEMS` of them."""
    left: list[LeftRecord] = field(default_factory=list)
    """Records of a part that make no trajectory without the rest of the log."""


class Pass:
    """Reads records in order; what it met stands in `met`."""

    def __init__(
        self, options: ReadOptions, *, alone: bool = False, on_error: Callable[[ReadProblem], None] | None = None
    ) -> None:
        """Begin.

        Args:
            options: How logs are read.
            alone: Leave records that others complete, instead of waiting for those.
            on_error: Called with each problem as it is met; of a part, with its first `MAX_KEPT_PROBLEMS` after it.
        """
        self.met = Counts()
        self._options, self._alone, self._on_error = options, alone, on_error
        self._importers: dict[str, Importer] = {}
        self._last = options.format
        self._end = Position("", 0)

    def records(self, source: Source, unit: str, records: Iterable[Line]) -> Iterator[Trajectory]:
        """Trajectories of the records of one file.

        Raises:
            DataError: at the first problem if `strict`.
        """
        self._last = self._options.format
        for record in records:
            if not source.named and self._last is None and _is_foreign(record, source.path):
                self.met.skipped.append(source.path)
                return
            yield from self.record(record, Position(source.path, record.number, unit))

    def record(self, record: Line, where: Position) -> Iterator[Trajectory]:
        """Trajectories that are over with one more record; errors as in `records`."""
        self._end = where
        try:
            pending = self._add(record, where)
        except NeedsOthers as needed:
            self.met.left.append(LeftRecord(where, record if needed.exchange is None else needed.exchange))
        except DeltahError as error:
            self.report(where, _with_hint(record, str(error)))
        else:
            yield from self._build(pending)

    def table(self, path: str, rows: range | None = None) -> Iterator[Trajectory]:
        """Trajectories of a Parquet file of ours, or of some rows of it; errors as in `records`."""

        def report(row: int, reason: str) -> None:
            self.report(Position(path, row, "row"), reason)

        try:
            for trajectory in read_parquet(path, rows=rows, skip=self._options.skip, on_error=report):
                self.met.n_read += 1
                yield trajectory
        except DataError as error:
            if self._options.strict:
                raise
            report(1, str(error))

    def finish(self) -> Iterator[Trajectory]:
        """Trajectories that still waited for further records; errors as in `records`."""
        for importer in self._importers.values():
            try:
                yield from self._build(importer.finish(self._end))
            except DataError as error:
                self.report(self._end, str(error))
            self.met.n_unjoined += importer.n_unjoined
            self.met.n_branches += importer.n_branches

    def absorb(self, part: Counts) -> Iterator[Trajectory]:
        """Count what the pass over a part met; trajectories of the records it left come as they are over.

        Raises:
            DataError: at the first problem if `strict`.
        """
        met = self.met
        met.n_read += part.n_read
        met.n_problems += part.n_problems
        # In the order of the lines, as if they were read here.
        lines: Iterator[ReadProblem | LeftRecord] = merge(part.problems, part.left, key=_number)
        for line in lines:
            if isinstance(line, ReadProblem):
                self._keep(line)
                continue
            where, record = line
            if isinstance(record, Exchange):
                self._end = where
                yield from self._build(self._chat_logs().join(record))
            else:
                yield from self.record(record, where)

    def report(self, where: Position, reason: str) -> None:
        """Take note of a problem.

        Raises:
            DataError: that problem, if `strict`.
        """
        problem = ReadProblem(where.file, where.number, reason, where.unit)
        if self._options.strict:
            raise DataError(str(problem))
        self.met.n_problems += 1
        self._keep(problem)

    def _keep(self, problem: ReadProblem) -> None:
        if len(self.met.problems) < MAX_KEPT_PROBLEMS:
            self.met.problems.append(problem)
        if self._on_error is not None:
            self._on_error(problem)

    def _add(self, record: Line, where: Position) -> Iterable[Pending]:
        """Try the format of the record before first: detection costs a pass over the record."""
        if record.damage is not None:
            raise DataError(record.damage)
        if self._last is None:
            self._last = detect(record.data).name
            return self._importer(self._last).add(record.data, where)
        try:
            return self._importer(self._last).add(record.data, where)
        except DataError:
            if self._options.format is not None:
                raise
            found = detect(record.data).name
            if found == self._last:
                raise
            self._last = found
            return self._importer(found).add(record.data, where)

    def _build(self, pending: Iterable[Pending]) -> Iterator[Trajectory]:
        for one in pending:
            try:
                trajectory = one.build()
            except DataError as error:
                self.report(one.where, str(error))
                continue
            self.met.n_read += 1
            yield trajectory

    def _chat_logs(self) -> ChatLogs:
        importer = self._importer("openai")
        assert isinstance(importer, ChatLogs)
        return importer

    def _importer(self, fmt: str) -> Importer:
        if fmt not in self._importers:
            self._importers[fmt] = make_importer(fmt, self._options.imports, alone=self._alone)
        return self._importers[fmt]


def _number(met: ReadProblem | LeftRecord) -> int:
    """Which record of its file it is."""
    return met.line if isinstance(met, ReadProblem) else met.where.number


def _is_foreign(record: Line, path: str) -> bool:
    """Whether a file's first record is sound but of no known format: tasks, a corpus or plain text beside the traces.

    What is no JSON in a file that should hold it is a damaged record, behind which others may stand.
    """
    if record.damage is not None:
        return False
    if not base_name(path).lower().endswith((".log", ".txt")) and not _is_object(record):
        return False
    try:
        detect(record.data)
    except DataError:
        return True
    return False


def _is_object(record: Line) -> bool:
    """Whether a record is a JSON object."""
    try:
        decode_line(record.data, _ANY_OBJECT)
    except DataError:
        return False
    return True


def _with_hint(record: Line, reason: str) -> str:
    if record.complete or record.damage is not None:
        return reason
    return f"the last line is cut off (interrupted writer?): {reason}"

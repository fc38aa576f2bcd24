"""One pass over files: each record goes to its format's importer, API calls to the joining, and losses are counted.

A pass reads a whole log in order, or one file alone in a process of its own; then it stops at the first record that
records of other files may complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from deltah.core.registry import Entry
from deltah.core.types import Trajectory
from deltah.errors import ConfigError, DataError, DeltahError, InvalidValueError
from deltah.traces.chunks import ChunkBuffer, LoggedChunk
from deltah.traces.conversation import ApiCall, Conversation, to_trajectory
from deltah.traces.fields import NOT_JSON
from deltah.traces.files import (
    PARQUET_MAGIC,
    Line,
    Position,
    head_of,
    inspect_samples,
    is_inspect_log,
    opened,
    table_rows,
    text_records,
)
from deltah.traces.importers.openai_chat import read_call
from deltah.traces.importing import IMPORTERS, Importer, RecordContext, default_id, detect, import_record, recognise
from deltah.traces.joining import Joiner
from deltah.traces.parquet import holds_traces, read_parquet
from deltah.traces.sources import Source, base_name, reads_once

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
    """How logs are read; see `deltah.traces.reader.read_traces`.

    Raises:
        InvalidValueError: if the format is unknown or the vocabulary size not positive.
    """

    format: str | None = None
    strict: bool = False
    vocab_size: int | None = None
    join: bool = True
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.format is not None:
            IMPORTERS.resolve(self.format)
        if self.vocab_size is not None and self.vocab_size < 1:
            raise InvalidValueError(f"vocab_size is {self.vocab_size}; expected a positive number of tokens")


@dataclass(slots=True)
class ReadCounts:
    """What was met beside the trajectories."""

    n_read: int = 0
    n_problems: int = 0
    n_unjoined: int = 0
    """API calls whose history holds an assistant's turn that the log does not."""
    n_branches: int = 0
    """Retries and forks that were not continued, each a trajectory of its own."""
    skipped: list[str] = field(default_factory=list)
    """Files of a folder or pattern that hold no traces."""
    problems: list[ReadProblem] = field(default_factory=list)
    """The first `MAX_KEPT_PROBLEMS` of them."""

    def add(self, other: ReadCounts) -> None:
        """Add what was met in another file."""
        self.n_read += other.n_read
        self.n_problems += other.n_problems
        self.n_unjoined += other.n_unjoined
        self.n_branches += other.n_branches
        self.skipped += other.skipped
        self.problems += other.problems[: MAX_KEPT_PROBLEMS - len(self.problems)]


class Reading:
    """Reads files in order."""

    def __init__(
        self,
        options: ReadOptions,
        *,
        counts: ReadCounts | None = None,
        on_error: Callable[[ReadProblem], None] | None = None,
        alone: bool = False,
    ) -> None:
        """Begin.

        Args:
            options: How to read.
            counts: Gets what is met.
            on_error: Called with each problem as it is met.
            alone: Stop at the first record that other files may complete; then `needs_others` is True.
        """
        self.counts = ReadCounts() if counts is None else counts
        self.needs_others = False
        self._options, self._on_error, self._alone = options, on_error, alone
        self._given = None if options.format is None else IMPORTERS.resolve(options.format)
        self._format: Entry[Importer] | None = None
        """Of the record before."""
        self._chunks = ChunkBuffer()
        self._joiner = Joiner() if options.join else None
        self._end = Position("", 0)

    def file(self, source: Source) -> Iterator[Trajectory]:
        """Trajectories of one file that are over by its end.

        Raises:
            DataError: at the first problem if `strict`.
            ConfigError: if the caller's vocabulary size is too small for what the file holds.
        """
        self._format = self._given
        try:
            with opened(source.path) as raw:
                head = b"" if reads_once(source.path) else head_of(raw)
                if head.startswith(PARQUET_MAGIC):
                    yield from self._table(source)
                elif is_inspect_log(head):
                    yield from self._records(source, inspect_samples(raw))
                else:
                    yield from self._records(source, text_records(raw))
        except OSError as error:  # it was there when the reading began
            self._report(Position(source.path, 1), f"{error}; the file is lost")

    def finish(self) -> Iterator[Trajectory]:
        """Trajectories that waited for further records; errors as in `file`."""
        for stream in self._chunks.finish():
            try:
                call = read_call(stream.line(), stream.where)
            except DataError as error:
                self._report(self._end, str(error))
            else:
                yield from self._join(call)
        if self._joiner is not None:
            yield from self._build(self._joiner.finish())
            self.counts.n_unjoined += self._joiner.n_unjoined
            self.counts.n_branches += self._joiner.n_branches

    def _table(self, source: Source) -> Iterator[Trajectory]:
        if not holds_traces(source.path):
            yield from self._records(source, table_rows(source.path))
            return

        def report(row: int, reason: str) -> None:
            self._report(Position(source.path, row, "row"), reason)

        try:
            for trajectory in read_parquet(source.path, skip=self._options.skip, on_error=report):
                self.counts.n_read += 1
                yield trajectory
        except DataError as error:
            if self._options.strict:
                raise
            report(1, str(error))

    def _records(self, source: Source, lines: Iterable[Line]) -> Iterator[Trajectory]:
        for line in lines:
            self._end = where = Position(source.path, line.number, line.unit)
            if self._format is None and not source.named and _is_foreign(line, source.path):
                self.counts.skipped.append(source.path)
                return
            try:
                yield from self._imported(self._import(line, where), where)
            except ConfigError:
                raise
            except DeltahError as error:
                self._report(where, _with_hint(line, str(error)))
            if self.needs_others:
                return

    def _import(self, line: Line, where: Position) -> Trajectory | ApiCall | LoggedChunk:
        """Try the format of the record before first: detection costs a pass over the record."""
        if line.damage is not None:
            raise DataError(line.damage)
        data = line.data.removeprefix(b"data:")  # a line copied from an event stream
        context = RecordContext(where=where, vocab_size=self._options.vocab_size)
        tried = self._format
        if tried is None:
            self._format = detect(data)
            return import_record(self._format, data, context)
        try:
            return import_record(tried, data, context)
        except DataError:
            if self._given is not None or (found := detect(data)) is tried:
                raise
            self._format = found
            return import_record(found, data, context)

    def _imported(self, record: Trajectory | ApiCall | LoggedChunk, where: Position) -> Iterator[Trajectory]:
        if isinstance(record, Trajectory):
            self.counts.n_read += 1
            yield record
        elif self._alone and (isinstance(record, LoggedChunk) or self._joiner is not None):
            self.needs_others = True
        elif isinstance(record, ApiCall):
            yield from self._join(record)
        elif (stream := self._chunks.add(record, where)) is not None:
            yield from self._join(read_call(stream.line(), stream.where))

    def _join(self, call: ApiCall) -> Iterator[Trajectory]:
        yield from self._build((call.alone(),) if self._joiner is None else self._joiner.add(call))

    def _build(self, conversations: Iterable[Conversation]) -> Iterator[Trajectory]:
        for one in conversations:
            try:
                trajectory = to_trajectory(one, default_id=default_id(one.where), vocab_size=self._options.vocab_size)
            except DataError as error:
                self._report(one.where, str(error))
                continue
            self.counts.n_read += 1
            yield trajectory

    def _report(self, where: Position, reason: str) -> None:
        problem = ReadProblem(where.file, where.number, reason, where.unit)
        if self._options.strict:
            raise DataError(str(problem))
        self.counts.n_problems += 1
        if len(self.counts.problems) < MAX_KEPT_PROBLEMS:
            self.counts.problems.append(problem)
        if self._on_error is not None:
            self._on_error(problem)


def _is_foreign(line: Line, path: str) -> bool:
    """Whether a file's first record is sound but of no known format: tasks, a corpus or plain text beside the traces.

    What is no JSON in a file that should hold it is a damaged record, behind which others may stand.
    """
    if line.damage is not None:
        return False
    try:
        return recognise(line.data.removeprefix(b"data:")) is None
    except DataError:
        return base_name(path).lower().endswith((".log", ".txt"))


def _with_hint(line: Line, reason: str) -> str:
    cut_off = not line.complete and reason.startswith(NOT_JSON)
    return f"the last line is cut off (interrupted writer?): {reason}" if cut_off else reason

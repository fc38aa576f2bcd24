"""Trajectories from files, streamed: one record in memory at a time, whatever the size and number of the files.

A record that cannot be read, a line cut off by an interrupted writer and a damaged compressed stream each become a
`ReadProblem`; a file of a folder that holds no traces is listed in `skipped`. API calls are joined into conversations
across the files of one reader, as logs rotate.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Final, TypeVar

from deltah.core.registry import OWN_MODULES
from deltah.core.types import Trajectory
from deltah.errors import ConfigError, DataError, DeltahError, InvalidValueError
from deltah.parallel import available_cores, map_ordered
from deltah.traces.conversation import ApiCall, Conversation, to_trajectory
from deltah.traces.files import STDIN, Line, Position, Source, expand, is_table, opened, reads_once, records
from deltah.traces.importers.openai_chat import read_call
from deltah.traces.importing import IMPORTERS, NOT_JSON, Imported, RecordContext, detect, import_record
from deltah.traces.joining import JoinCounts, Joiner
from deltah.traces.parquet import holds_traces, read_parquet
from deltah.traces.spans import SpanBuffer
from deltah.traces.streams import ChunkBuffer
from deltah.traces.wrapping import is_foreign, unwrapped

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
Result = TypeVar("Result")

MAX_WORKERS: Final = 8
"""Processes that are started unasked: each holds its own copy of the program in memory."""
PARALLEL_BYTES: Final = 8 * 2**20
"""Smaller logs are read by one process: starting others takes about as long."""
MAX_KEPT_PROBLEMS = 1000


@dataclass(frozen=True, slots=True)
class ReadProblem:
    """One record that could not be read: the line, sample or row of a file, counted from 1."""

    file: str
    """As the caller named it; "-" is standard input."""
    line: int
    reason: str
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.line}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How logs are read; see `read_traces` for fields and errors."""

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


@dataclass(eq=False)
class ReadCounts(JoinCounts):
    """What was met beside the trajectories; `MAX_KEPT_PROBLEMS` problems are kept in full, all are counted."""

    n_read: int = 0
    file: str = ""
    """Of the trajectory read last, the first file that holds it."""
    number: int = 0
    """Of the file among those that are read one by one."""
    n_problems: int = 0
    skipped: list[str] = field(default_factory=list)
    """Files of a folder or pattern that hold no traces."""
    problems: list[ReadProblem] = field(default_factory=list)

    def add(self, other: ReadCounts) -> None:
        """Add what was met in another file."""
        self.n_read += other.n_read
        self.n_problems += other.n_problems
        self.add_joins(other)
        self.skipped += other.skipped
        self.problems += other.problems[: MAX_KEPT_PROBLEMS - len(self.problems)]

    def add_joins(self, other: JoinCounts) -> None:
        """Add what was met while API calls were joined."""
        for name in ("n_unjoined", "n_branches", "n_repeated"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.weakly_joined += other.weakly_joined


class TraceReader(ReadCounts, Iterable[Trajectory]):
    """Trajectories of files, in order, read as they are asked for, and what was met so far.

    Each iteration starts anew and resets the counts; standard input and pipes can be iterated once.
    """

    def __init__(
        self, paths: Paths, options: ReadOptions | None = None, on_error: Callable[[ReadProblem], None] | None = None
    ) -> None:
        super().__init__()
        self.options = options or ReadOptions()
        self.sources = expand(paths)
        self._on_error = on_error
        self._started = False

    def __iter__(self) -> Iterator[Trajectory]:
        """Yield the trajectories; `DataError` at the first problem if `strict`, or if a pipe is read a second time."""
        self._begin()
        return self._read(self.sources)

    def map(
        self,
        function: Callable[[ReadCounts, Iterator[Trajectory]], Result],
        *,
        workers: int | None = None,
        watch: Callable[[int], object] | None = None,
    ) -> Iterator[Result]:
        """Apply a function to the trajectories of each file, several files at once; starts anew like an iteration.

        Files whose records others may complete (API calls that are joined, chunks of streams) and pipes come last and
        together, read in order by this process. So results are the same for any number of processes.

        Args:
            function: Takes the counts (`number` and `file` say what is read) and the trajectories of a file, and reads
                all. With several processes it is a function of a module, or a partial, and its results are pickled.
            workers: Processes, one file each; None: one per core, at most 8, for logs of several files and more than 8
                MiB. A program that asks for several guards its main module (see `multiprocessing`, "spawn").
            watch: Called with the number of trajectories read so far.

        Yields:
            One result per file, in the order of the files, then one of the files that belong together.

        Raises:
            InvalidValueError: if `workers` is below 1.
            ProcessError: if a worker is killed; and the errors of an iteration.
        """
        self._begin()
        together = {source for source in self.sources if reads_once(source.path)}
        single = [source for source in self.sources if source not in together]

        def watched(counts: ReadCounts, trajectories: Iterable[Trajectory]) -> Result:
            return function(counts, self._watched(trajectories, watch))  # this process can report each trajectory

        n_workers = self._default_workers(single) if workers is None else workers
        read_one = partial(_read_alone, watched if n_workers == 1 else function, self.options)
        results: Iterator[tuple[Result, ReadCounts] | None] = (
            map(read_one, enumerate(single))
            if n_workers == 1
            else map_ordered(read_one, enumerate(single), workers=n_workers, modules=tuple(OWN_MODULES))
        )
        for source, found in zip(single, results, strict=True):
            if found is None:
                together.add(source)
                continue
            result, counts = found
            self.add(counts)
            if self._on_error is not None:
                for problem in counts.problems:
                    self._on_error(problem)
            if watch is not None:
                watch(self.n_read)
            yield result
        if together:
            self.number = len(single)
            yield watched(self, self._read([source for source in self.sources if source in together]))

    def _read(self, sources: Iterable[Source]) -> Iterator[Trajectory]:
        reading = Reading(self.options, counts=self, on_error=self._on_error)
        for source in sources:
            yield from reading.file(source)
        yield from reading.finish()

    def _begin(self) -> None:
        once = next((source.path for source in self.sources if reads_once(source.path)), None)
        if self._started and once is not None:
            name = "standard input" if once == STDIN else once
            raise DataError(f"{name} was already read; keep its trajectories, or save them to a file first")
        self._started = True
        ReadCounts.__init__(self)

    def _watched(self, found: Iterable[Trajectory], watch: Callable[[int], object] | None) -> Iterator[Trajectory]:
        for n, trajectory in enumerate(found, start=self.n_read + 1):
            if watch is not None:
                watch(n)
            yield trajectory

    def _default_workers(self, sources: Sequence[Source]) -> int:
        n_bytes = sum(os.path.getsize(source.path) for source in sources if os.path.exists(source.path))
        # An importer of an interactive session is not known to other processes.
        is_interactive = any(entry.value.__module__ == "__main__" for entry in IMPORTERS.values())
        few = n_bytes < PARALLEL_BYTES or is_interactive or not sources
        return 1 if few else min(available_cores(), MAX_WORKERS, len(sources))


def _read_alone(
    function: Callable[[ReadCounts, Iterator[Trajectory]], Result], options: ReadOptions, numbered: tuple[int, Source]
) -> tuple[Result, ReadCounts] | None:
    """A function's result for one file, and what was met in it; None if other files may complete its records."""
    number, source = numbered
    reading = Reading(options, counts=ReadCounts(number=number), alone=True)
    trajectories = chain(reading.file(source), reading.finish())
    first = next(trajectories, None)  # the first record usually says whether others complete it
    if reading.needs_others:
        return None
    result = function(reading.counts, trajectories if first is None else chain([first], trajectories))
    return None if reading.needs_others else (result, reading.counts)


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
        paths: A file (plain, gzip or Zstandard, detected from its content), a folder, a glob pattern, "-" for standard
            input, or several of them.
        format: Name in `deltah.traces.importing.IMPORTERS`, or `package.module:function` of an importer of your own;
            None: each record's format is detected from its content.
        strict: Stop with an error at the first record that cannot be read, instead of counting it.
        on_error: Called with each problem as it is met.
        vocab_size: V for logs whose records do not state it; None: that of the model's family, else
            `deltah.core.entropy.DEFAULT_VOCAB_SIZE`.
        join: Whether the API calls of one conversation, logged one per line, become one trajectory.
        skip: Fields of `deltah.traces.parquet.OPTIONAL` that the caller does not need: Parquet is then read faster.

    Returns:
        An iterable of `Trajectory` that carries `.problems`, `.n_problems`, `.n_read`, `.n_unjoined`,
        `.n_weakly_joined`, `.weakly_joined`, `.n_branches`, `.n_repeated` and `.skipped`.

    Raises:
        DataError: if a file does not exist or may not be read, or a folder holds none; later, from the iteration, if
            `strict`.
        InvalidValueError: if the format is unknown or the vocabulary size not positive.
    """
    options = ReadOptions(format=format, strict=strict, vocab_size=vocab_size, join=join, skip=tuple(skip))
    return TraceReader(paths, options, on_error)


class Reading:
    """One pass over files, in order: each record goes to its format's importer, API calls to the joining.

    `alone` stops at the first record that other files may complete: then `needs_others` is True.
    """

    def __init__(
        self,
        options: ReadOptions,
        *,
        counts: ReadCounts | None = None,
        on_error: Callable[[ReadProblem], None] | None = None,
        alone: bool = False,
    ) -> None:
        self.counts, self.needs_others = counts or ReadCounts(), False
        self._options, self._on_error, self._alone = options, on_error, alone
        self._given = None if options.format is None else IMPORTERS.resolve(options.format)
        self._format = self._given  # of the record before
        self._chunks = ChunkBuffer()
        self._joiner: Joiner | None = None
        self._spans: SpanBuffer | None = None
        self._end = Position("", 0)

    def file(self, source: Source) -> Iterator[Trajectory]:
        """Trajectories of one file that are over by its end."""
        self._format = self._given
        try:
            with opened(source.path) as raw:
                is_ours = is_table(source.path, raw) and holds_traces(source.path)
                yield from self._table(source) if is_ours else self._records(source, records(source.path, raw))
        except OSError as error:  # it was there when the reading began
            self._report(Position(source.path, 1), f"{error}; the file is lost")

    def finish(self) -> Iterator[Trajectory]:
        """Trajectories that waited for further records."""
        for stream in self._chunks.open.values():
            try:
                call = read_call(stream.line(), stream.where)
            except DataError as error:
                self._report(self._end, str(error))
            else:
                yield from self._join(call)
        yield from chain.from_iterable(map(self._join, self._spans.finish() if self._spans else ()))
        if self._joiner is not None:
            yield from self._build(self._joiner.finish())
            self.counts.add_joins(self._joiner)

    def _table(self, source: Source) -> Iterator[Trajectory]:
        def report(row: int, reason: str) -> None:
            self._report(Position(source.path, row, "row"), reason)

        try:
            for trajectory in read_parquet(source.path, skip=self._options.skip, on_error=report):
                self.counts.n_read += 1
                self.counts.file = source.path
                yield trajectory
        except DataError as error:
            if self._options.strict:
                raise
            report(1, str(error))

    def _records(self, source: Source, lines: Iterable[Line]) -> Iterator[Trajectory]:
        for line in lines:
            self._end = where = Position(source.path, line.number, line.unit)
            if self._format is None and not source.named and is_foreign(line, source.path):
                self.counts.skipped.append(source.path)
                return
            yield from self._record(line, where)
            if self.needs_others:
                return

    def _record(self, line: Line, where: Position, *, inside: bool = False) -> Iterator[Trajectory]:
        try:
            yield from self._imported(self._import(line, where), where)
        except ConfigError:
            raise
        except DeltahError as error:
            records = unwrapped(line.data) if not inside and self._given is None else []
            for part, data in enumerate(records, start=1):
                there = where._replace(part=part if len(records) > 1 else None)
                yield from self._record(replace(line, data=data), there, inside=True)
            if not records:
                cut_off = not line.complete and str(error).startswith(NOT_JSON)
                hint = "the last line is cut off (interrupted writer?): " if cut_off else ""
                self._report(where, f"{hint}{error}")

    def _import(self, line: Line, where: Position) -> Imported:
        """Try the format of the record before first: detection costs a pass over the record."""
        if line.damage is not None:
            raise DataError(line.damage)
        data = line.data.removeprefix(b"data:")  # a line copied from an event stream
        context = RecordContext(where=where, vocab_size=self._options.vocab_size)
        if self._format is not None:
            try:
                return import_record(self._format, data, context)
            except DataError:
                if self._given is not None or detect(data) is self._format:
                    raise
        self._format = detect(data)
        return import_record(self._format, data, context)

    def _imported(self, record: Imported, where: Position) -> Iterator[Trajectory]:
        if isinstance(record, Trajectory | tuple):
            for trajectory in record if isinstance(record, tuple) else (record,):
                self.counts.n_read += 1
                self.counts.file = where.file
                yield trajectory
        elif self._alone and (not isinstance(record, ApiCall) or self._options.join):
            self.needs_others = True
        elif isinstance(record, list):
            self._spans = self._spans or SpanBuffer(self._report)
            for one in self._spans.add(record, where):
                yield from self._join(one)
        elif isinstance(record, ApiCall):
            yield from self._join(record)
        elif (stream := self._chunks.add(record, where)) is not None:
            yield from self._join(read_call(stream.line(), stream.where))

    def _join(self, one: ApiCall | Conversation) -> Iterator[Trajectory]:
        if isinstance(one, ApiCall) and self._options.join:
            self._joiner = self._joiner or Joiner()
            yield from self._build(self._joiner.add(one))
        else:
            yield from self._build([one.alone() if isinstance(one, ApiCall) else one])

    def _build(self, conversations: Iterable[Conversation]) -> Iterator[Trajectory]:
        for one in conversations:
            try:
                trajectory = to_trajectory(one, self._options.vocab_size)
            except (DataError, InvalidValueError) as error:
                self._report(one.where, str(error))
                continue
            self.counts.n_read += 1
            self.counts.file = one.where.file
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

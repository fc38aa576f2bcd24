"""Trajectories from files, streamed: one record in memory at a time, whatever the size and number of the files.

Gzip, Zstandard, zip and Parquet are recognised by their first bytes, formats by their content, "-" is standard input.
Nothing is lost unannounced: a record that cannot be read, a line cut off by an interrupted writer and a damaged
compressed stream each become a `ReadProblem`; a file of a folder that holds no traces is listed in `skipped`. API calls
are joined into conversations across the files of one reader, as logs rotate.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Final, TypeVar

from deltah.core.registry import own_modules
from deltah.core.types import Trajectory
from deltah.errors import DataError
from deltah.parallel import available_cores, map_ordered
from deltah.traces.importing import IMPORTERS
from deltah.traces.reading import ReadCounts, Reading, ReadOptions, ReadProblem
from deltah.traces.sources import STDIN, Source, expand, reads_once

__all__ = ["Paths", "TraceReader", "read_traces"]

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
Result = TypeVar("Result")

MAX_WORKERS: Final = 8
"""Processes that are started unasked: each holds its own copy of the program in memory."""
PARALLEL_BYTES: Final = 8 * 2**20
"""Logs that are smaller are read by one process: starting others takes about as long."""


class TraceReader(Iterable[Trajectory]):
    """Trajectories of files, in order, read as they are asked for.

    Each iteration starts anew and resets the counts; standard input and pipes can be iterated once.
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
        self.options = ReadOptions(format=format, strict=strict, vocab_size=vocab_size, join=join, skip=tuple(skip))
        self.sources = expand(paths)
        self.counts = ReadCounts()
        """What was met so far."""
        self._on_error = on_error
        self._started = False

    @property
    def n_read(self) -> int:
        """Trajectories read so far."""
        return self.counts.n_read

    @property
    def n_problems(self) -> int:
        """Records that could not be read so far."""
        return self.counts.n_problems

    @property
    def n_unjoined(self) -> int:
        """API calls whose history holds an assistant's turn that the log does not."""
        return self.counts.n_unjoined

    @property
    def n_branches(self) -> int:
        """Retries and forks that were not continued, each a trajectory of its own."""
        return self.counts.n_branches

    @property
    def skipped(self) -> list[str]:
        """Files of a folder or pattern that hold no traces."""
        return self.counts.skipped

    @property
    def problems(self) -> tuple[ReadProblem, ...]:
        """Problems met so far, at most `MAX_KEPT_PROBLEMS` of them; `n_problems` counts all."""
        return tuple(self.counts.problems)

    def __iter__(self) -> Iterator[Trajectory]:
        """Yield the trajectories that can be read.

        Raises:
            DataError: at the first problem if `strict`, or if standard input or a pipe is read a second time.
        """
        self._begin()
        return self._read(self.sources)

    def map(
        self,
        function: Callable[[int, Iterator[Trajectory]], Result],
        *,
        workers: int | None = None,
        watch: Callable[[int], object] | None = None,
    ) -> Iterator[Result]:
        """Apply a function to the trajectories of each file, several files at once; starts anew like an iteration.

        Files whose records others may complete (API calls that are joined, chunks of streams) and pipes come last and
        together, read in order by this process. So results are the same for any number of processes.

        Args:
            function: Takes the number of a file, from 0, and its trajectories, and reads them all. With several
                processes it is a function of a module, or a `functools.partial` of one, and its results are pickled.
            workers: Processes, one file each; None: one per core, `MAX_WORKERS` at most, for logs of several files and
                more than `PARALLEL_BYTES`. A program that asks for several guards its main module (see
                `multiprocessing`, "spawn").
            watch: Called with the number of trajectories read so far.

        Yields:
            One result a file, in the order of the files, then one of the files that belong together.

        Raises:
            DataError: see `__iter__`.
            InvalidValueError: if `workers` is below 1.
            ProcessError: if a worker is killed.
        """
        self._begin()
        together = {source for source in self.sources if reads_once(source.path)}
        single = [source for source in self.sources if source not in together]
        n_workers = self._default_workers(single) if workers is None else workers
        results: Iterator[tuple[Result, ReadCounts] | None]
        if n_workers == 1:

            def here(number: int, found: Iterator[Trajectory]) -> Result:
                return function(number, self._told(watch, found))

            results = map(partial(_read_alone, here, self.options), enumerate(single))
        else:
            read_one = partial(_read_alone, function, self.options)
            results = map_ordered(read_one, enumerate(single), workers=n_workers, modules=own_modules())
        for source, found in zip(single, results, strict=True):
            if found is None:
                together.add(source)
                continue
            result, counts = found
            self.counts.add(counts)
            if self._on_error is not None:
                for problem in counts.problems:
                    self._on_error(problem)
            if watch is not None:
                watch(self.n_read)
            yield result
        if together:
            sources = [source for source in self.sources if source in together]
            yield function(len(single), self._told(watch, self._read(sources)))

    def _read(self, sources: Iterable[Source]) -> Iterator[Trajectory]:
        reading = Reading(self.options, counts=self.counts, on_error=self._on_error)
        for source in sources:
            yield from reading.file(source)
        yield from reading.finish()

    def _begin(self) -> None:
        once = next((source.path for source in self.sources if reads_once(source.path)), None)
        if self._started and once is not None:
            name = "standard input" if once == STDIN else once
            raise DataError(f"{name} was already read; keep its trajectories, or save them to a file first")
        self._started = True
        self.counts = ReadCounts()

    def _told(self, watch: Callable[[int], object] | None, trajectories: Iterable[Trajectory]) -> Iterator[Trajectory]:
        """Trajectories of this process, each told to whoever watches."""
        for n, trajectory in enumerate(trajectories, start=self.n_read + 1):
            if watch is not None:
                watch(n)
            yield trajectory

    def _default_workers(self, sources: Sequence[Source]) -> int:
        if sum(os.path.getsize(source.path) for source in sources if os.path.exists(source.path)) < PARALLEL_BYTES:
            return 1
        # An importer of an interactive session is not known to other processes.
        if any(entry.value.__module__ == "__main__" for entry in IMPORTERS.values()):
            return 1
        return min(available_cores(), MAX_WORKERS, max(len(sources), 1))


def _read_alone(
    function: Callable[[int, Iterator[Trajectory]], Result], options: ReadOptions, numbered: tuple[int, Source]
) -> tuple[Result, ReadCounts] | None:
    """A function's result for one file, and what was met in it; None if other files may complete its records."""
    number, source = numbered
    reading = Reading(options, alone=True)
    trajectories = chain(reading.file(source), reading.finish())
    first = next(trajectories, None)  # the first record usually says whether others complete it
    if reading.needs_others:
        return None
    result = function(number, trajectories if first is None else chain([first], trajectories))
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
        paths: A file (plain, gzip or Zstandard, told apart by content), a folder, a glob pattern, "-" for standard
            input, or several of them.
        format: Name in `deltah.traces.importing.IMPORTERS`, or `package.module:function` of an importer of your own;
            None: each record's format is detected from its content.
        strict: Stop with an error at the first record that cannot be read, instead of counting it.
        on_error: Called with each problem as it is met.
        vocab_size: V for logs whose records do not state it; None: that of the model's family, else
            `deltah.core.entropy.DEFAULT_VOCAB_SIZE`.
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

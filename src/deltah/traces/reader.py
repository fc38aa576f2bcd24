"""Trajectories from files, streamed: one record in memory at a time, whatever the size and number of the files.

Gzip, Zstandard, zip and Parquet are recognised by their first bytes, formats by their content, "-" is standard input.
Nothing is lost unannounced: a record that cannot be read, a line cut off by an interrupted writer and a damaged
compressed stream each become a `ReadProblem`; a file of a folder that holds no traces is listed in `skipped`, one that
lies there plain and compressed is read once and listed in `copies`. API calls are joined into conversations across the
files of one reader, as logs rotate.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from deltah.core.types import Trajectory
from deltah.errors import DataError
from deltah.traces.containers import open_records
from deltah.traces.copies import Copy, without_copies
from deltah.traces.formats import ImportOptions
from deltah.traces.importing import IMPORTERS
from deltah.traces.parquet import holds_traces
from deltah.traces.parts import Part, parts_of
from deltah.traces.reading import MAX_KEPT_PROBLEMS, Counts, Pass, ReadOptions, ReadProblem
from deltah.traces.sources import STDIN, Source, expand, reads_once

__all__ = ["MAX_KEPT_PROBLEMS", "Paths", "ReadProblem", "TraceReader", "read_traces"]

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


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
        self.options = ReadOptions(
            format=None if format is None else IMPORTERS.resolve(format).name,
            strict=strict,
            imports=ImportOptions(vocab_size=vocab_size, join=join),
            skip=tuple(skip),
        )
        self.sources = expand(paths)
        self._on_error = on_error
        self._started = False
        self._whole: list[Source] = []
        """Files without parts that were met since the last part."""
        self._before: deque[list[Source]] = deque()
        """Those before each part that is not absorbed yet."""
        self._pass = Pass(self.options)

    @property
    def n_read(self) -> int:
        """Trajectories read so far."""
        return self._pass.met.n_read

    @property
    def n_problems(self) -> int:
        """Records that could not be read so far."""
        return self._pass.met.n_problems

    @property
    def n_unjoined(self) -> int:
        """API calls whose history holds an assistant's turn that the log does not."""
        return self._pass.met.n_unjoined

    @property
    def n_branches(self) -> int:
        """Retries and forks that were not continued, each a trajectory of its own."""
        return self._pass.met.n_branches

    @property
    def skipped(self) -> list[str]:
        """Files of a folder or pattern that hold no traces."""
        return self._pass.met.skipped

    @property
    def copies(self) -> tuple[Copy, ...]:
        """Files of a folder or pattern that were left out: another, plain or compressed, holds what they hold."""
        return tuple(self._pass.met.copies)

    @property
    def problems(self) -> tuple[ReadProblem, ...]:
        """Problems met so far, at most `MAX_KEPT_PROBLEMS` of them; `n_problems` counts all."""
        return tuple(self._pass.met.problems)

    def __iter__(self) -> Iterator[Trajectory]:
        """Yield the trajectories that can be read.

        Raises:
            DataError: at the first problem if `strict`, or if standard input or a pipe is read a second time.
        """
        self._begin()
        return self._read(self._files())

    def parts(self) -> Iterator[Part]:
        """Start anew with the parts that can be read by themselves, in any process (`deltah.traces.parts.read_part`).

        What was met in each belongs to `absorb`, in the order of the parts; then `rest` gives what is left.

        Raises:
            DataError: if standard input or a pipe is read a second time.
        """
        self._begin()
        self._whole, self._before = [], deque()
        return self._parts()

    def absorb(self, met: Counts) -> Iterator[Trajectory]:
        """Count what was met in the next part; yields trajectories of files before it, and of what it left.

        Raises:
            DataError: at the first problem if `strict`.
        """
        # In this order, because the conversations of one log go on in the next.
        yield from self._read_files(self._before.popleft())
        yield from self._pass.absorb(met)

    def rest(self) -> Iterator[Trajectory]:
        """Trajectories of files after the last part, and of what waited for more; errors as in the iteration."""
        return self._read(self._whole)

    def _begin(self) -> None:
        once = next((source.path for source in self.sources if reads_once(source.path)), None)
        if self._started and once is not None:
            name = "standard input" if once == STDIN else once
            raise DataError(f"{name} was already read; keep its trajectories, or save them to a file first")
        self._started = True
        self._pass = Pass(self.options, on_error=self._on_error)

    def _files(self) -> Iterator[Source]:
        return without_copies(self.sources, self._pass.met.copies)

    def _parts(self) -> Iterator[Part]:
        for source in self._files():
            parts = parts_of(source, self.options)
            if parts is None:
                self._whole.append(source)
                continue
            for part in parts:
                self._before.append(self._whole)
                self._whole = []
                yield part

    def _read(self, sources: Iterable[Source]) -> Iterator[Trajectory]:
        yield from self._read_files(sources)
        yield from self._pass.finish()

    def _read_files(self, sources: Iterable[Source]) -> Iterator[Trajectory]:
        for source in sources:
            if not reads_once(source.path) and holds_traces(source.path):
                yield from self._pass.table(source.path)
            else:
                yield from self._pass.records(source, *open_records(source.path))


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
        on_error: Called with each problem as it is met; of a part, with its first `MAX_KEPT_PROBLEMS` once it is read.
        vocab_size: V for logs whose records do not state it. None: that of the model's family, else the assumption of
            `deltah.core.entropy.DEFAULT_VOCAB_SIZE`.
        join: Whether API calls of one conversation, logged one a line, become one trajectory.
        skip: Fields of `deltah.traces.parquet.OPTIONAL` that the caller does not need: Parquet is then read faster.

    Returns:
        An iterable of `Trajectory` that carries `.problems`, `.n_problems`, `.n_read`, `.n_unjoined`, `.n_branches`,
        `.skipped` and `.copies`.

    Raises:
        DataError: if a file does not exist or may not be read, or a folder holds none; later, from the iteration, if
            `strict`.
        InvalidValueError: if the format is unknown or the vocabulary size not positive.
    """
    return TraceReader(
        paths, format=format, strict=strict, on_error=on_error, vocab_size=vocab_size, join=join, skip=skip
    )

"""JSON lines on disk: streaming reader, atomic writer, appending writer.

One line is one trajectory. Reading holds one line in memory at a time, whatever the size of the file. Gzip and
Zstandard are recognised by their first bytes, "-" is standard input. Nothing is lost unannounced: a line that cannot
be read, a line cut off by an interrupted writer and a damaged compressed stream each become a `ReadProblem`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from deltah.core.types import Trajectory
from deltah.errors import DataError, DeltahError, InvalidValueError
from deltah.traces import record
from deltah.traces.formats import Format, LineContext, detect, parse_format, read_line
from deltah.traces.streams import Line, open_compressed_writer, read_lines

MAX_KEPT_PROBLEMS = 1000
"""Problems kept in full; all are counted."""


@dataclass(frozen=True, slots=True)
class ReadProblem:
    """One line that could not be read."""

    file: str
    """As the caller named it; "-" is standard input."""
    line: int
    """Counted from 1."""
    reason: str

    def __str__(self) -> str:
        """One line for a terminal."""
        return f"{self.file}, line {self.line}: {self.reason}"


class TraceReader(Iterable[Trajectory]):
    """Trajectories of one file, in order, read as they are asked for.

    Each iteration starts the file again and resets the counts; standard input can be iterated once.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        format: str | None = None,
        strict: bool = False,
        on_error: Callable[[ReadProblem], None] | None = None,
        vocab_size: int | None = None,
    ) -> None:
        """Prepare to read; see `read_traces` for the arguments and errors."""
        self.path = os.fspath(path)
        self.strict = strict
        self.n_read = 0
        self.n_problems = 0
        self._format = None if format is None else parse_format(format)
        self._on_error = on_error
        self._vocab_size = vocab_size
        self._problems: list[ReadProblem] = []
        self._started = False
        _check_readable(self.path)
        if vocab_size is not None and vocab_size < 1:
            raise InvalidValueError(f"vocab_size is {vocab_size}; expected a positive number of tokens")

    @property
    def problems(self) -> tuple[ReadProblem, ...]:
        """Problems met so far, at most `MAX_KEPT_PROBLEMS` of them; `n_problems` counts all."""
        return tuple(self._problems)

    def __iter__(self) -> Iterator[Trajectory]:
        """Yield the trajectories that can be read.

        Raises:
            DataError: at the first problem if `strict`, or if standard input is read a second time.
        """
        if self._started and self.path == "-":
            raise DataError("standard input was already read; keep its trajectories, or save them to a file first")
        self._started = True
        self._problems, self.n_problems, self.n_read = [], 0, 0
        return self._trajectories()

    def _trajectories(self) -> Iterator[Trajectory]:
        last: Format | None = self._format
        stem = "stdin" if self.path == "-" else Path(self.path).name
        for line in read_lines(self.path):
            context = LineContext(default_id=f"{stem}:{line.number}", vocab_size=self._vocab_size)
            try:
                trajectory, last = self._read(line, last, context)
            except DeltahError as error:
                self._report(line, str(error))
                continue
            self.n_read += 1
            yield trajectory

    def _read(self, line: Line, last: Format | None, context: LineContext) -> tuple[Trajectory, Format]:
        """Try the format of the line before first: detection costs a pass over the line."""
        if line.damage is not None:
            raise DataError(line.damage)
        if last is None:
            last = detect(line.data)
            return read_line(line.data, last, context), last
        try:
            return read_line(line.data, last, context), last
        except DataError:
            if self._format is not None:
                raise
            found = detect(line.data)
            if found is last:
                raise
            return read_line(line.data, found, context), found

    def _report(self, line: Line, reason: str) -> None:
        if not line.complete and line.damage is None:
            reason = f"the last line is cut off (interrupted writer?): {reason}"
        problem = ReadProblem(self.path, line.number, reason)
        if self.strict:
            raise DataError(str(problem))
        self.n_problems += 1
        if len(self._problems) < MAX_KEPT_PROBLEMS:
            self._problems.append(problem)
        if self._on_error is not None:
            self._on_error(problem)


def read_traces(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    strict: bool = False,
    on_error: Callable[[ReadProblem], None] | None = None,
    vocab_size: int | None = None,
) -> TraceReader:
    """Read the trajectories of a JSON-lines file.

    Args:
        path: Plain, gzip or Zstandard file, told apart by content; "-" is standard input.
        format: "deltah" or "openai"; None: each line's format is detected from its content.
        strict: Stop with an error at the first line that cannot be read, instead of counting it.
        on_error: Called with each problem as it is met.
        vocab_size: V for logs whose lines do not state it.

    Returns:
        An iterable of `Trajectory` that carries `.problems`, `.n_problems` and `.n_read`.

    Raises:
        DataError: if the file does not exist, is a folder or may not be read; later, from the iteration, if `strict`.
        InvalidValueError: if the format is unknown or the vocabulary size not positive.
    """
    return TraceReader(path, format=format, strict=strict, on_error=on_error, vocab_size=vocab_size)


def write_traces(path: str | os.PathLike[str], trajectories: Iterable[Trajectory]) -> int:
    """Write trajectories to a JSON-lines file, atomically: the old file stays whole until the new one is.

    Args:
        path: A name that ends in `.gz` or `.zst` is compressed. Missing parent folders are made.
        trajectories: Consumed one at a time.

    Returns:
        The number written.

    Raises:
        DataError: if the file cannot be written (no space, no permission).
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    count = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as raw:
            with open_compressed_writer(raw, target.suffix) as stream:
                for trajectory in trajectories:
                    stream.write(record.encode(trajectory) + b"\n")
                    count += 1
            raw.flush()
            os.fsync(raw.fileno())
        temporary.replace(target)
    except OSError as error:
        raise DataError(
            f"cannot write {target}: {error.strerror or error}; the file there, if any, is as it was"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return count


class TraceWriter:
    """Append trajectories to a plain JSON-lines file as they are made, one flushed line each.

    A process killed at any moment loses at most the line it was writing; the next writer starts on a new line, so that
    the damaged one stays a single `ReadProblem`.

        with TraceWriter("run/traces.jsonl") as writer:
            writer.write(trajectory)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open, or create, the file.

        Raises:
            InvalidValueError: if the name asks for compression, which cannot be appended to safely.
            DataError: if the file cannot be opened.
        """
        self.path = Path(path)
        self.n_written = 0
        if self.path.suffix in (".gz", ".zst"):
            raise InvalidValueError(f"cannot append to {self.path}: write plain .jsonl, or use write_traces at the end")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = self.path.open("ab")
            if _ends_mid_line(self.path):
                self._file.write(b"\n")
        except OSError as error:
            raise DataError(f"cannot append to {self.path}: {error.strerror or error}") from error

    def write(self, trajectory: Trajectory) -> None:
        """Append one trajectory and flush it to the operating system.

        Raises:
            DataError: if the disk is full or the file is gone.
        """
        try:
            self._file.write(record.encode(trajectory) + b"\n")
            self._file.flush()
        except OSError as error:
            raise DataError(f"cannot append to {self.path}: {error.strerror or error}") from error
        self.n_written += 1

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        self._file.close()

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()


def _check_readable(path: str) -> None:
    if path == "-":
        return
    if Path(path).is_dir():
        raise DataError(f"{path} is a folder; expected a .jsonl file of traces (.gz and .zst are read too)")
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; expected a .jsonl file of traces") from error


def _ends_mid_line(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"

"""Trajectories written: whole files atomically, or JSON lines flushed one after another.

One line is one trajectory; Parquet is in `deltah.traces.parquet`, reading in `deltah.traces.reader`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Self

from deltah.compression import compressed
from deltah.core.types import Trajectory
from deltah.errors import DataError, InvalidValueError
from deltah.traces import record
from deltah.traces.parquet import write_parquet


def write_traces(path: str | os.PathLike[str], trajectories: Iterable[Trajectory]) -> int:
    """Write trajectories to a file, atomically: the old file stays whole until the new one is.

    Args:
        path: `.parquet` gives a Parquet file, any other name JSON lines, compressed if it ends in `.gz` or `.zst`.
            Missing parent folders are made.
        trajectories: Consumed one at a time.

    Returns:
        The number written.

    Raises:
        DataError: if the file cannot be written (no space, no permission).
    """
    target = Path(path)
    if target.suffix == ".parquet":
        return write_parquet(target, trajectories)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    count = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as raw:
            with compressed(raw, target.suffix) as stream:
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
            self._file = self.path.open("a+b")
            if self._file.seek(0, os.SEEK_END):
                self._file.seek(-1, os.SEEK_END)
                if self._file.read(1) != b"\n":
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

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        self.close()

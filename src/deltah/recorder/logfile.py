"""The log that a recorder appends to: whole lines, written by a thread that nobody waits for."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from deltah.errors import ConfigError
from deltah.text_format import count

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no flock; logs there are not protected from a second recorder
    fcntl = None  # type: ignore[assignment]

MAX_WAITING_BYTES: Final = 256 * 2**20
DRAIN_S: Final = 10.0
"""How long `close` waits for the disk, in seconds."""
QUIET_S: Final = 60.0
"""Least time between two sentences about losses, in seconds."""
_PACKED: Final = (".gz", ".zst", ".parquet", ".eval")


class Line(Protocol):
    """What can become a line of the log."""

    @property
    def size(self) -> int:
        """Bytes of memory it takes while it waits, roughly."""

    def line(self) -> bytes:
        """The line, with its end; called in the thread that writes."""


class LogFile:
    """Appends lines to a file; where the disk is full, or slower than the lines come, lines are lost and counted.

    Args:
        path: The log. Its lines stay; a last one that was cut off is ended first. Its folder is made.
        say: Takes what the user should know, one sentence each.
        max_waiting_bytes: Memory for lines that wait.

    Raises:
        ConfigError: if the log cannot be appended to, or another recorder does so.
    """

    def __init__(self, path: Path, say: Callable[[str], None], *, max_waiting_bytes: int = MAX_WAITING_BYTES) -> None:
        self.path, self.n_written, self.n_lost = path, 0, 0
        self._say, self._max = say, max_waiting_bytes
        if path.suffix in _PACKED:
            raise ConfigError(f"--out {path}: a log is appended to as plain text; expected a name such as log.jsonl")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
        except OSError as error:
            raise ConfigError(f"cannot append to {path}: {error.strerror or error}; choose another --out") from error
        self._waiting: deque[tuple[Line, int]] = deque()
        self._n_bytes = 0
        self._closed = False
        self._quiet_until = 0.0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write_all, name="log-writer", daemon=True)
        self._thread.start()

    def offer(self, line: Line) -> None:
        """Take a line without waiting; it is lost if too many wait."""
        size = line.size
        with self._changed:
            if self._n_bytes + size <= self._max or not self._n_bytes:
                self._waiting.append((line, size))
                self._n_bytes += size
                self._changed.notify()
                return
        self._lose("the disk is slower than the lines come")

    def close(self, timeout_s: float = DRAIN_S) -> None:
        """Write what waits; what the disk does not take in time is lost."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)
        with self._changed:
            self.n_lost += len(self._waiting) + self._thread.is_alive()
            self._waiting.clear()
        if not self._thread.is_alive():
            os.close(self._file)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                line, size = self._waiting.popleft()
            try:
                self._append(line.line())
            except Exception as error:  # one line is lost, whatever it is; the thread goes on
                self._lose(getattr(error, "strerror", None) or str(error) or type(error).__name__)
            with self._changed:
                self._n_bytes -= size

    def _append(self, data: bytes) -> None:
        self._follow()
        start = os.fstat(self._file).st_size
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, start)  # half a line helps nobody
            raise
        self.n_written += 1

    def _lose(self, reason: str) -> None:
        with self._changed:
            self.n_lost += 1
            if (now := time.monotonic()) < self._quiet_until:
                return
            self._quiet_until = now + QUIET_S
        self._say(f"{self.path}: {count(self.n_lost, 'exchange')} not recorded so far ({reason}); requests still pass")

    def _follow(self) -> None:
        """Begin a new file where the log was moved or removed, as rotation does."""
        try:
            if os.path.samestat(os.stat(self.path), os.fstat(self._file)):
                return
        except FileNotFoundError:
            pass
        fresh = self._open()
        os.close(self._file)
        self._file = fresh

    def _open(self) -> int:
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            _lock(file, self.path)
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, 0) not in b"{\n":
                raise ConfigError(f"{self.path} is no log of JSON lines; choose another --out")
            if size and os.pread(file, 1, size - 1) != b"\n":
                os.write(file, b"\n")
        except BaseException:
            os.close(file)
            raise
        return file


def _lock(file: int, path: Path) -> None:
    """Keep a second recorder away; a file system without locks lets it in."""
    if fcntl is None:  # pragma: no cover - Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"another recorder writes {path}; end it, or choose another --out") from error
    except OSError:
        return

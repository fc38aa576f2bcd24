"""The log that a recorder appends to: whole lines, written by a thread that nobody waits for."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from deltah.errors import ConfigError
from deltah.recorder.exchange import Exchange
from deltah.text_format import count


class LogFile:
    """Appends lines to a file; where the disk is full, or slower than the lines come, lines are lost and counted."""

    def __init__(self, path: Path, say: Callable[[str], None], *, max_waiting_bytes: int = 256 * 2**20) -> None:
        self.path, self.n_written, self.n_lost = path, 0, 0
        self._say, self._max = say, max_waiting_bytes
        if path.suffix in (".gz", ".zst", ".parquet", ".eval"):
            raise ConfigError(f"--out {path}: a log is appended to as plain text; expected a name such as log.jsonl")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
        except OSError as error:
            raise ConfigError(f"cannot append to {path}: {error.strerror or error}; choose another --out") from error
        self._waiting: SimpleQueue[tuple[Exchange, int] | None] = SimpleQueue()
        self._n_offered = self._bytes_taken = self._bytes_done = 0
        self._thread = threading.Thread(target=self._write_all, name="log-writer", daemon=True)
        self._thread.start()

    def offer(self, line: Exchange) -> None:
        """Take a line without waiting; it is lost if too many wait."""
        size, waiting = line.size, self._bytes_taken - self._bytes_done
        self._n_offered += 1
        if waiting and waiting + size > self._max:
            self._lose("the disk is slower than the lines come")
        else:
            self._bytes_taken += size
            self._waiting.put((line, size))

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what waits; what the disk does not take in time is lost."""
        self._waiting.put(None)
        self._thread.join(timeout_s)
        self.n_lost = self._n_offered - self.n_written

    def _write_all(self) -> None:
        while taken := self._waiting.get():
            line, size = taken
            try:
                self._append(line.line())
                self.n_written += 1
            except Exception as error:  # one line is lost, whatever it is; the thread goes on
                self._lose(getattr(error, "strerror", None) or str(error) or type(error).__name__)
            self._bytes_done += size
        os.close(self._file)

    def _append(self, data: bytes) -> None:
        """Write a line; to a new file where the log was moved or removed, as rotation does."""
        if not self.path.exists() or not os.path.samestat(os.stat(self.path), os.fstat(self._file)):
            old, self._file = self._file, self._open()
            os.close(old)
        start, rest = os.fstat(self._file).st_size, memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, start)  # half a line helps nobody
            raise

    def _lose(self, reason: str) -> None:
        self.n_lost += 1
        if self.n_lost % 1000 == 1:
            lost = count(self.n_lost, "exchange")
            self._say(f"{self.path}: {lost} not recorded so far ({reason}); requests still pass")

    def _open(self) -> int:
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(f"another recorder writes {self.path}; end it, or choose another --out") from error
            except OSError:
                pass  # a file system without locks
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, 0) not in b"{\n":
                raise ConfigError(f"{self.path} is no log of JSON lines; choose another --out")
            if size and os.pread(file, 1, size - 1) != b"\n":
                os.write(file, b"\n")
        except BaseException:
            os.close(file)
            raise
        return file

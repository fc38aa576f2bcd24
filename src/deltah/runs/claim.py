"""A lock on a run directory: one process works in it at a time, and a run that fails to start leaves nothing."""

from __future__ import annotations

import errno
import logging
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deltah.errors import ConfigError
from deltah.runs.directory import FOLDERS, LOCK, MANIFEST, STATUS, content

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no flock; runs there are not protected from one another
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


@contextmanager
def claim(path: Path) -> Iterator[None]:
    """Lock a run directory for this process; the lock ends with the process.

    If the block fails before it has written results, everything it made is removed, so that the corrected command can
    use the same name.

    Args:
        path: The directory; created with its parents.

    Raises:
        ConfigError: if another process holds it (its id and host are named), or it cannot be written.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    before = {child.name for child in path.iterdir()} if path.is_dir() else set()
    try:
        lock = _locked_file(path)
    except OSError as error:
        raise ConfigError(
            f"cannot write the run directory {path}: {error.strerror or error}; choose another --out"
        ) from error
    try:
        yield
    except BaseException:
        if MANIFEST not in before and not _worth_keeping(path, before):
            _discard(path, before, made)
        raise
    finally:
        os.close(lock)


def _locked_file(path: Path) -> int:
    """Descriptor of the locked `.lock` file, with this process's name in it.

    Raises:
        ConfigError: if another process holds it.
        OSError: if the directory cannot be made or written.
    """
    while True:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _flock(lock, path)
            with suppress(FileNotFoundError):  # the holder before may have removed the file as it left
                if os.path.samestat(os.fstat(lock), (path / LOCK).stat()):
                    os.ftruncate(lock, 0)
                    os.write(lock, f"process {os.getpid()} on {platform.node() or 'an unnamed host'}".encode())
                    return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _flock(lock: int, path: Path) -> None:
    if fcntl is None:  # pragma: no cover - Windows
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            logger.warning("%s is on a file system without locks (%s): start one run in it at a time", path, error)
            return
        holder = os.pread(lock, 200, 0).decode(errors="replace") or "another process"
        raise ConfigError(
            f"{path} is in use by {holder}; wait until it ends, or give another --out to start a new run"
        ) from error


def _worth_keeping(path: Path, before: set[str]) -> bool:
    return any(child.name not in (MANIFEST, STATUS, *before) for child in content(path))


def _discard(path: Path, before: set[str], made: list[Path]) -> None:
    """Remove what a run that never started made; what was there before stays."""
    for name in set(FOLDERS) - before:
        shutil.rmtree(path / name, ignore_errors=True)
    for name in {MANIFEST, STATUS, LOCK} - before:
        (path / name).unlink(missing_ok=True)
    for folder in made:
        with suppress(OSError):  # someone else put something in it
            folder.rmdir()

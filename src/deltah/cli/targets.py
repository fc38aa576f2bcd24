"""Where a command writes to, checked before it works: a wrong target costs nothing but one sentence."""

from __future__ import annotations

import tempfile
from pathlib import Path

from deltah.errors import ConfigError


def check_directory(path: Path) -> None:
    """Make a directory, with its parents, and try whether files can be written there.

    Raises:
        ConfigError: if they cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = "it is a file" if path.is_file() else (error.strerror or str(error)).lower()
        raise ConfigError(f"cannot write to the directory {path}: {reason}; choose another one") from error


def check_file(path: Path) -> None:
    """Make the directory of a file, and try whether the file can be written there.

    Raises:
        ConfigError: if it cannot.
    """
    if path.is_dir():
        raise ConfigError(f"cannot write the file {path}: it is a directory; choose another name")
    check_directory(path.parent)

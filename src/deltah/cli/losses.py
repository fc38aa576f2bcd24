"""What was lost while reading logs, and that nothing is lost by writing: alike for every command that reads them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import typer

from deltah.calls.logs import ScoredLog
from deltah.calls.twins import is_report_twin
from deltah.errors import ConfigError, DataError
from deltah.text_format import count

MAX_PROBLEMS_PRINTED = 20


def spare_inputs(outputs: Iterable[Path | None], inputs: Iterable[str | Path | None]) -> None:
    """Refuse to write over what is read.

    Args:
        outputs: Files that will be written; None is none.
        inputs: Files that are read; None is none.

    Raises:
        ConfigError: if a file is both.
    """
    kept = {os.path.realpath(path): path for path in inputs if path is not None}
    for out in outputs:
        if out is not None and out.exists() and (path := kept.get(os.path.realpath(out))) is not None:
            raise ConfigError(f"--out {out} would overwrite {path}, which is read; choose another name")


def check_file_name(out: Path) -> None:
    """Refuse an output that names a folder, or nothing.

    Raises:
        ConfigError: if it does.
    """
    if not out.name or out.is_dir():
        raise ConfigError(f"--out {out} is a folder; expected the name of a file to write")


def check_writable(out: Path) -> None:
    """Make the folder of an output and try it, before any work.

    Raises:
        DataError: if no file can be written there.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror or error}; choose another place") from error


def spare_all_but_twins(page: Path) -> None:
    """Refuse a page whose JSON twin would replace a file that is no twin of an earlier page: a log, a manifest.

    Raises:
        ConfigError: if it would.
    """
    twin = page.with_suffix(".json")
    if twin.exists() and not is_report_twin(twin):
        raise ConfigError(
            f"--out {page} would overwrite {twin}, which is not the JSON twin of an earlier page; choose another name"
        )


def named_files(log: ScoredLog) -> list[str]:
    """Files that the user named; one found in a folder may be the output of an earlier run."""
    return [source.path for source in log.reader.sources if source.named]


def read_files(log: ScoredLog) -> list[str]:
    """Files that were read for logs, once it is known which of a folder's are none."""
    return [source.path for source in log.reader.sources if source.path not in log.reader.skipped]


def report_losses(log: ScoredLog) -> None:
    """List what was lost on standard error, and leave with code 1 if a record could not be read."""
    for path in log.reader.skipped:
        typer.echo(f"passed over: {path} (no known trace format)", err=True)
    for problem in log.reader.problems[:MAX_PROBLEMS_PRINTED]:
        typer.echo(f"left out: {problem}", err=True)
    more = log.reader.n_problems - min(len(log.reader.problems), MAX_PROBLEMS_PRINTED)
    if more:
        typer.echo(f"left out: {more:,} more", err=True)
    if log.reader.n_problems:
        typer.echo(f"{count(log.reader.n_problems, 'record')} could not be read", err=True)
        raise typer.Exit(1)


def nothing_read(log: ScoredLog, paths: Sequence[str]) -> DataError:
    """The error for logs without a single trajectory."""
    first = f"; the first problem: {log.reader.problems[0]}" if log.reader.problems else ""
    skipped = f"; passed over {log.reader.skipped[0]} (no known trace format)" if log.reader.skipped else ""
    empty = "; it holds nothing to read" if len(paths) == 1 else "; they hold nothing to read"
    return DataError(f"no trajectory could be read from {', '.join(paths)}{first or skipped or empty}")

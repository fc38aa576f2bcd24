"""What was lost while reading logs, and that nothing is lost by writing: alike for every command that reads them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import typer

from deltah.calls.logs import ScoredLog, is_result
from deltah.errors import ConfigError, DataError
from deltah.text_format import count

MAX_PROBLEMS_PRINTED = 20


def check_outputs(
    outputs: Iterable[Path | None],
    inputs: Iterable[str | Path | None],
    *,
    beside: Iterable[Path] = (),
    force: bool = False,
) -> None:
    """Refuse, before any work, outputs that are folders and, unless forced, those that would destroy a file of others.

    Args:
        outputs: Files that the user named; None is none.
        inputs: Files that are read, the logs in a folder among them; None is none.
        beside: Files that are written without having been named: they replace results of deltah only.
        force: Overwrite all the same.

    Raises:
        ConfigError: naming the file and what to do.
        DataError: if a folder cannot be written.
    """
    read = {os.path.realpath(path): path for path in inputs if path is not None}
    unnamed = list(beside)
    for out in (*outputs, *unnamed):
        if out is None:
            continue
        if not out.name or out.is_dir():
            raise ConfigError(f"--out {out} is a folder; expected the name of a file to write")
        _check_writable(out)
        if force or not out.exists():
            continue
        if (path := read.get(os.path.realpath(out))) is not None:
            raise ConfigError(f"--out {out} would overwrite {path}, which is read; choose another name, or --force")
        if out in unnamed and not is_result(out):
            raise ConfigError(f"{out} would be overwritten and is no earlier result; choose another --out, or --force")


def _check_writable(out: Path) -> None:
    """Make the folder of an output and try it.

    Raises:
        DataError: if no file can be written there.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror or error}; choose another place") from error


def logs_of(log: ScoredLog) -> list[str]:
    """Files that are read for logs."""
    return [source.path for source in log.reader.sources]


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

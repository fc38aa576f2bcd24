"""What was lost while reading logs, said alike by every command that reads them."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from deltah.errors import DataError
from deltah.study import ScoredLog

MAX_PROBLEMS_PRINTED = 20


def report_losses(log: ScoredLog) -> None:
    """List what was lost on standard error, and leave with code 1 if a record could not be read."""
    for path in log.reader.skipped:
        typer.echo(f"passed over: {path} (no known trace format)", err=True)
    for problem in log.reader.problems[:MAX_PROBLEMS_PRINTED]:
        typer.echo(f"left out: {problem}", err=True)
    if log.reader.n_problems:
        typer.echo(f"{log.reader.n_problems} records could not be read", err=True)
        raise typer.Exit(1)


def nothing_read(log: ScoredLog, paths: Sequence[str]) -> DataError:
    """The error for logs without a single trajectory."""
    first = f"; the first problem: {log.reader.problems[0]}" if log.reader.problems else ""
    skipped = f"; passed over {log.reader.skipped[0]} (no known trace format)" if log.reader.skipped else ""
    return DataError(f"no trajectory could be read from {', '.join(paths)}{first or skipped}")

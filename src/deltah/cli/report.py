"""`deltah report`: one self-contained HTML page from run directories or traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    paths: Annotated[list[Path], typer.Argument(help="Run directories or trace files; several are compared.")],
    out: Annotated[Path | None, typer.Option(help="Page to write; a JSON twin is written beside it.")] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
) -> None:
    """Write a page with tables, curves and a trajectory viewer."""
    from deltah.study import load_report, write_report

    data = load_report(paths, title=title)
    first = paths[0]
    page = out or (first / "report.html" if first.is_dir() else first.with_name("report.html"))
    write_report(data, page)
    typer.echo(f"page  {page.resolve().as_uri()}\njson  {page.with_suffix('.json')}")
    lost = sum(arm.n_problems for arm in data.arms)
    if lost:
        typer.echo(f"{lost} records could not be read; the page lists them", err=True)
        raise typer.Exit(1)

"""`deltah study`: every signal against every quality label of the calls in traces or logs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltah.errors import ConfigError, DataError

if TYPE_CHECKING:
    from deltah.core.types import Trajectory
    from deltah.study.pilot import Association, Evidence, StudyResult
    from deltah.traces import ReadProblem


def command(
    paths: Annotated[list[Path], typer.Argument(help="Trace or log files, or directories of them; - for stdin.")],
    tasks: Annotated[Path | None, typer.Option(help="Task file whose 'supporting' names documents.")] = None,
    corpus: Annotated[Path | None, typer.Option(help="JSONL of those documents; goes with --tasks.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Your labels: CSV or JSONL, trajectory, call, columns.")] = None,
    probe: Annotated[Path | None, typer.Option(help="What `deltah probe` measured of the calls.")] = None,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples of every interval.", min=100)] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the resampling.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Directory, or .json file, for study.json and study.md.")] = None,
) -> None:
    """Test how well signals of entropy tell good calls from others."""
    from deltah.cli.progress import reporting
    from deltah.study.pilot import build_table, read_call_values, run_study

    evidence = _evidence(tasks, corpus)
    trajectories, problems = _read(paths)
    table = build_table(
        trajectories,
        evidence=evidence,
        probe=None if probe is None else read_call_values(probe),
        columns=None if labels is None else read_call_values(labels),
        seed=seed,
    )
    with reporting("resampling") as report:
        result = run_study(
            table, resamples=resamples, seed=seed, on_progress=lambda done, total: report(done, total, {})
        )
    _print(result)
    if out is not None:
        _write(result, out)
    for problem in problems[:20]:
        typer.echo(f"left out: {problem}", err=True)
    if problems:
        typer.echo(f"{len(problems)} records could not be read", err=True)
        raise typer.Exit(1)


def _evidence(tasks: Path | None, corpus: Path | None) -> Evidence | None:
    """Supporting documents of the tasks.

    Raises:
        ConfigError: if only one of the two files is given.
    """
    if tasks is None and corpus is None:
        return None
    if tasks is None or corpus is None:
        raise ConfigError("--tasks and --corpus go together: the tasks name documents, the corpus holds them")
    from deltah.study.pilot import Evidence
    from deltah.tasks import read_tasks
    from deltah.tools import read_corpus

    return Evidence.of(read_tasks(tasks), read_corpus(corpus))


def _read(paths: Sequence[Path]) -> tuple[list[Trajectory], list[ReadProblem]]:
    from deltah.cli.score import _files
    from deltah.traces import read_traces

    trajectories: list[Trajectory] = []
    problems: list[ReadProblem] = []
    for path in _files(paths):
        reader = read_traces(path)
        trajectories += reader
        problems += reader.problems
    if not trajectories:
        raise DataError(f"no trajectory could be read from {', '.join(map(str, paths))}")
    return trajectories, problems


def _print(result: StudyResult) -> None:
    """One table a label, the best signal first."""
    from rich.console import Console

    from deltah.cli.tables import escaped
    from deltah.study.pilot.markdown import label_note, method_notes, size_note

    console = Console()
    console.print(
        f"{result.calls} calls of {result.trajectories} trajectories, {result.questions} questions", highlight=False
    )
    for label in result.labels:
        rows = result.of_label(label)
        console.print(f"\n[bold]{escaped(label)}[/]: {escaped(label_note(label))}", highlight=False)
        console.print(f"[dim]{escaped(size_note(rows))}[/]", highlight=False)
        if any(a.reason is None for a in rows):
            console.print(_table(rows))
    for note in (*method_notes(result), *result.notes):
        console.print(f"[dim]· {escaped(note)}[/]", highlight=False)


_SHOWN = ("auc", "auc_within_index", "auc_stratified", "spearman", "partial_spearman")
"""Statistics of the terminal's table; the files hold all."""


def _table(rows: Sequence[Association]) -> object:
    from rich import box
    from rich.table import Table

    from deltah.cli.tables import escaped, two_lines
    from deltah.study.pilot.markdown import COLUMNS, p_text, signal_title
    from deltah.study.tables import estimate_cell

    titles = dict(COLUMNS)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("signal", "n", *(titles[name] for name in _SHOWN), "p (Holm)", "partial p (Holm)"):
        table.add_column(name, justify="left" if name == "signal" else "right")
    for a in rows:
        name = escaped(signal_title(a.signal))
        if a.reason is not None:
            table.add_row(name, str(a.spearman.n), f"[dim]{escaped(a.reason)}[/]")
            continue
        cells = [estimate_cell(getattr(a, key), 3, signed=not key.startswith("auc")) for key in _SHOWN]
        tests = (p_text(a.p_holm), p_text(a.p_partial_holm))
        table.add_row(name, str(a.spearman.n), *map(two_lines, cells), *tests)
    return table


def _write(result: StudyResult, out: Path) -> None:
    """Write the JSON and, beside it, the Markdown file.

    Raises:
        DataError: if a file cannot be written.
    """
    from deltah.traces.rundir import write_atomic

    data = out if out.suffix.lower() == ".json" else out / "study.json"
    try:
        data.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(data, json.dumps(result.as_dict(), ensure_ascii=False, allow_nan=False, indent=1) + "\n")
        write_atomic(data.with_suffix(".md"), result.to_markdown())
    except OSError as error:
        raise DataError(f"cannot write {data}: {error.strerror or error}; choose another place") from error
    typer.echo(f"{data}\n{data.with_suffix('.md')}")

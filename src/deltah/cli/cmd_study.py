"""`deltah study`: every signal against every quality label of the calls in traces or logs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from deltah.calls.notes import notes_on, nothing_read
from deltah.calls.table import CallTable, LogOptions, ScoredLog
from deltah.cli import arguments
from deltah.cli.terminal import escaped, print_notes, reading, report_losses, reporting, two_lines
from deltah.core.signals import SignalConfig
from deltah.core.types import Trajectory
from deltah.errors import ConfigError
from deltah.runs import write_atomic
from deltah.stats.columns import PROBE_COLUMNS, build_table
from deltah.stats.labels import Evidence, read_call_values
from deltah.stats.study import StudyResult, run_study
from deltah.stats.study_text import LabelTable, label_tables, method_notes, result_size, study_markdown
from deltah.tasks import read_tasks
from deltah.tools import read_corpus


def command(  # noqa: PLR0913 - the options of a command line
    paths: arguments.Logs,
    tasks: Annotated[
        Path | None,
        typer.Option("--tasks", "--answers", help="Grades or gold answers, with 'supporting' document ids."),
    ] = None,
    corpus: Annotated[Path | None, typer.Option(help="Supporting documents of the tasks, JSONL.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Your labels of calls: CSV or JSONL.")] = None,
    probe: Annotated[Path | None, typer.Option(help="Output of deltah probe for the same calls.")] = None,
    signal: Annotated[
        list[str] | None, typer.Option(help="Another signal, as package.module:function. Repeatable.")
    ] = None,
    tools: arguments.ToolFile = None,
    format: arguments.TraceFormat = None,
    vocab_size: arguments.VocabSize = None,
    join: arguments.Join = True,
    strict: arguments.Strict = False,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples per interval.", min=100)] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the resampling.")] = 0,
    force: arguments.Force = False,
    out: Annotated[Path | None, typer.Option(help="Directory, or .json file, to write the results to.")] = None,
) -> None:
    """Test which signals tell good calls from bad ones."""
    targets = _targets(out)
    if corpus is not None and tasks is None:
        raise ConfigError("--corpus goes with --tasks: the tasks name the documents that the corpus holds")
    answers = None if tasks is None else str(tasks)
    options = LogOptions(answers=answers, tools=tools, format=format, vocab_size=vocab_size, join=join, strict=strict)
    with reading() as watch:
        log = ScoredLog(paths, replace(options, watch=watch))
        calls = CallTable(tools=log.tools)
        log.signal = SignalConfig()  # whatever a run was scored by
        arguments.check_outputs(targets, [tasks, tools, corpus, labels, probe, *log.reader.sources], force=force)
        table = build_table(
            _trajectories(log, paths, calls),
            signals=signal or (),
            evidence=Evidence.of(read_tasks(tasks), read_corpus(corpus)) if tasks and corpus else None,
            probe=None if probe is None else read_call_values(probe, only=PROBE_COLUMNS),
            columns=None if labels is None else read_call_values(labels),
            seed=seed,
            calls=calls,
        )
    with reporting("resampling") as (report,):
        result = run_study(table, resamples=resamples, seed=seed, on_progress=report)
    _print(result)
    if targets:
        data, page = targets
        write_atomic(data, json.dumps(result.as_dict(), ensure_ascii=False, allow_nan=False, indent=1) + "\n")
        write_atomic(page, study_markdown(result))
        typer.echo(f"{data}\n{page}")
    print_notes(notes_on(calls, log))
    report_losses(log)


def _trajectories(log: ScoredLog, paths: list[str], calls: CallTable) -> Iterator[Trajectory]:
    """Trajectories of a log, one at a time, each added to the table of calls; an error if there is none."""
    for trajectory, signal, matched in log:
        calls.add(trajectory, signal, matched=matched)
        yield trajectory
    if not calls.n_trajectories:
        raise nothing_read(log, paths)


def _print(result: StudyResult) -> None:
    """Print one table per label, the best signal first."""
    console = Console()
    console.print(result_size(result), highlight=False)
    for table in label_tables(result, digits=2):
        console.print(f"\n[bold]{escaped(table.label)}[/]: {escaped(table.note)}", highlight=False)
        console.print(f"[dim]{escaped(table.size)}[/]", highlight=False)
        if not table.rows:
            continue
        console.print(_table(table))
        if table.finding is not None:
            console.print(escaped(table.finding), highlight=False)
        for row in table.rows:
            if row.reason is not None:
                console.print(f"[dim]{row.signal} is not computed: {escaped(row.reason)}[/]", highlight=False)
    for note in (*method_notes(result), *result.notes):
        console.print(f"[dim]· {escaped(note)}[/]", highlight=False)


def _table(content: LabelTable) -> Table:
    """What fits a terminal of 80 columns; the files hold all."""
    shown = {"auc": "AUC", "auc_within_index": "within\ncall index"}
    if content.graded:
        shown = {"spearman": "Spearman", "partial_spearman": "partial\nSpearman"}
    shown |= {"p_holm": "p,\nHolm", "p_partial_holm": "partial\np, Holm"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("signal", overflow="fold")
    for title in ("n", *shown.values()):
        table.add_column(title, justify="right", no_wrap=True)
    for row in content.rows:
        if row.reason is None:
            table.add_row(escaped(row.title), str(row.n), *(two_lines(row.cells[key]) for key in shown))
    return table


_IS_STUDY = arguments.like(rb'\A\{\s*"schema_version": ?\d+,\s*"level":')
_IS_STUDY_PAGE = arguments.like(rb"\A# Pilot study\n\n[\d,]+ calls? of [\d,]+ trajector")


def _targets(out: Path | None) -> dict[Path, Callable[[Path], bool]]:
    """The JSON and the Markdown file; a name that says neither a directory nor a JSON file is refused."""
    if out is None:
        return {}
    if out.suffix and out.suffix.lower() != ".json" and not out.is_dir():
        raise ConfigError(f"--out {out}: expected a directory, or a name that ends in .json")
    data = out if out.suffix.lower() == ".json" else out / "study.json"
    return {data: _IS_STUDY, data.with_suffix(".md"): _IS_STUDY_PAGE}

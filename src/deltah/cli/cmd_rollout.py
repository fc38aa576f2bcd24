"""`deltah rollout`: run a model on tasks, without training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from deltah.cli import arguments
from deltah.cli.settings import resolve
from deltah.cli.terminal import reporting
from deltah.errors import DataError
from deltah.text_format import count, share
from deltah.traces.importing import IMPORTERS, recognise
from deltah.traces.parquet import holds_traces

TRACE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".gz", ".zst", ".parquet")
"""Suffixes of a trace file; any other target is a run directory."""


def _is_traces(path: Path) -> bool:
    """Whether a file holds traces that deltah wrote."""
    try:
        return holds_traces(path) or recognise(arguments.first_record(path)) is IMPORTERS["deltah"]
    except DataError:
        return False


def command(  # noqa: PLR0913 - the options of a command line
    tasks: Annotated[str, typer.Option(help="Task file: JSONL or Parquet.")],
    out: Annotated[Path, typer.Option(help="Trace file (.jsonl, .jsonl.zst, .parquet) or run directory.")],
    model: arguments.Model = None,
    tools: arguments.Tools = None,
    corpus: arguments.Corpus = None,
    samples: Annotated[int, typer.Option(help="Trajectories per task.", min=1)] = 1,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always take the most likely token.")] = False,
    limit: arguments.Limit = None,
    seed: arguments.Seed = None,
    force: arguments.Force = False,
    config: arguments.ConfigFile = None,
    settings: arguments.Settings = None,
) -> None:
    """Run a model on tasks and write its trajectories, with exact entropies."""
    from deltah.engines.config import RolloutRunConfig
    from deltah.runs import RunDirectory, claim, open_run

    options = arguments.agent(model, tools, corpus, seed)
    resolved = resolve(RolloutRunConfig, config, options=options, settings=settings or ()).rollout
    asked = {"rollout": asdict(resolved), "tasks": tasks, "limit": limit, "samples": samples, "greedy": greedy}
    is_file = out.suffix in TRACE_SUFFIXES
    if is_file:
        arguments.check_outputs({out: _is_traces}, [tasks, corpus, config], force=force)
    run = RunDirectory(out.with_name(f"{out.name}.partial") if is_file else out)
    traces = out if is_file else run.evaluation("greedy" if greedy else "sampled")
    with claim(run.path):
        open_run(run.path, asked, command="rollout")
        from deltah.engines.trl.rollout import RolloutJob
        from deltah.tasks import read_tasks

        job = RolloutJob(resolved, read_tasks(Path(tasks))[:limit], run, samples=samples, greedy=greedy)
        if not run.finished:
            if done := job.kept():
                typer.echo(f"continuing after {share(done, job.total, 'trajectory')} in {job.partial}")
            with reporting("rollout") as (report,):
                report(done, job.total)
                for number in job.proceed(done):
                    report(number, job.total)
            job.finish(traces, remove_run=is_file)
    typer.echo(f"{count(job.total, 'trajectory')} in {traces}; next: deltah score {traces}")

"""`deltah rollout`: let a model act on tasks with its tools and write the traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltah.cli.config import resolve
from deltah.cli.progress import reporting
from deltah.cli.train import Settings, split_names


def command(  # noqa: PLR0913 - the options of a command line
    tasks: Annotated[str, typer.Option(help="Task file, JSONL or Parquet.")],
    out: Annotated[Path, typer.Option(help="Trace file to write, .jsonl or .jsonl.zst.")],
    model: Annotated[str | None, typer.Option(help="Directory, hub id, 'lab' or 'smollm2'.")] = None,
    tools: Annotated[str | None, typer.Option(help="Comma-separated: search, python, package.module:function.")] = None,
    corpus: Annotated[str | None, typer.Option(help="JSONL of documents for the search tool.")] = None,
    samples: Annotated[int, typer.Option(help="Trajectories of each task.", min=1)] = 1,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest token instead of sampling.")] = False,
    limit: Annotated[int | None, typer.Option(help="Use only the first so many tasks.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with the keys of [rollout].")] = None,
    settings: Settings = None,
) -> None:
    """Roll out a model on tasks and write its trajectories with exact entropies."""
    from deltah.engines.trl.config import RolloutConfig

    resolved = resolve(
        RolloutConfig,
        config,
        options={
            "model": model,
            "tools": None if tools is None else split_names(tools),
            "tool.corpus": corpus,
            "seed": seed,
        },
        settings=settings or (),
    )
    from deltah.engines.trl.acting import rollout
    from deltah.tasks import read_tasks
    from deltah.traces import write_traces

    chosen = read_tasks(Path(tasks))[:limit]
    trajectories = []
    with reporting("rollout") as report:
        for trajectory, _ in rollout(resolved, chosen, greedy=greedy, samples=samples):
            trajectories.append(trajectory)
            report(len(trajectories), len(chosen) * samples, {})
    count = write_traces(out, trajectories)
    typer.echo(f"{count} trajectories in {out}; next: deltah score {out}")

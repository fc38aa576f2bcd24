"""`deltah train`: GRPO with an entropy reward, for any causal LM with a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltah.cli.progress import reporting_phases
from deltah.cli.settings import resolve

Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Any other configuration key, e.g. reward.alpha=0.3; repeatable.")
]


def command(  # noqa: PLR0913 - the options of a command line
    tasks: Annotated[str | None, typer.Option(help="Task file, JSONL or Parquet.")] = None,
    model: Annotated[str | None, typer.Option(help="Directory, hub id, or 'lab', the embedded agent.")] = None,
    tools: Annotated[str | None, typer.Option(help="Comma-separated: search, python, package.module:function.")] = None,
    corpus: Annotated[str | None, typer.Option(help="JSONL of documents for the search tool.")] = None,
    reward: Annotated[str | None, typer.Option(help="outcome, sparse, dense, penalty, otc or shuffled.")] = None,
    signal: Annotated[str | None, typer.Option(help="Signal behind the reward; delta_h is the method's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    eval_tasks: Annotated[str | None, typer.Option(help="Held-out task file to evaluate on at the end.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    out: Annotated[Path, typer.Option(help="Run directory; an interrupted run continues there.")] = Path("runs/train"),
    config: Annotated[Path | None, typer.Option(help="TOML file with the same keys.")] = None,
    settings: Settings = None,
) -> None:
    """Train a tool-using model with GRPO and an entropy reward."""
    from deltah.engines.config import TrainConfig

    resolved = resolve(
        TrainConfig,
        config,
        options={
            "tasks": tasks,
            "rollout.model": model,
            "rollout.tools": None if tools is None else split_names(tools),
            "rollout.tool.corpus": corpus,
            "reward.name": reward,
            "signal.name": signal,
            "steps": steps,
            "eval.tasks": eval_tasks,
            "rollout.seed": seed,
        },
        settings=settings or (),
    )
    from deltah.engines.trl.processes import rank
    from deltah.engines.trl.training import train

    with reporting_phases(f"train {resolved.reward.name}", "evaluate", hidden=rank() > 0) as (training, held_out):
        run = train(resolved, out, progress=training, evaluation_progress=held_out)
    if rank():  # torchrun started several processes: the first one speaks
        return
    typer.echo(f"model   {run.model}")
    typer.echo(f"report  deltah report {run.path}")


def split_names(text: str) -> list[str]:
    """Names of a comma-separated option."""
    return [name.strip() for name in text.split(",") if name.strip()]

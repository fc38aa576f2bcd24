"""`deltah train`: GRPO with an entropy reward, for any causal LM with a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltah.cli.arguments import ConfigFile, Corpus, Model, Seed, Settings, Tools, split_names
from deltah.cli.progress import reporting_phases
from deltah.cli.settings import resolve


def command(  # noqa: PLR0913 - the options of a command line
    tasks: Annotated[str | None, typer.Option(help="Task file: JSONL or Parquet.")] = None,
    model: Model = None,
    tools: Tools = None,
    corpus: Corpus = None,
    reward: Annotated[
        str | None, typer.Option(help="One of {rewards}; or package.module:function (default: sparse).")
    ] = None,
    signal: Annotated[
        str | None, typer.Option(help="One of {all_signals}; or package.module:function (default: delta_h).")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Number of optimiser steps.")] = None,
    eval_tasks: Annotated[str | None, typer.Option(help="Task file to evaluate the trained model on.")] = None,
    seed: Seed = None,
    out: Annotated[Path, typer.Option(help="Run directory. An interrupted run continues there.")] = Path("runs/train"),
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Train a model that uses tools, with GRPO and an entropy reward."""
    from deltah.engines.config import TrainConfig

    resolved = resolve(
        TrainConfig,
        config,
        options={
            "tasks": tasks,
            "rollout.model": model,
            "rollout.tools": split_names(tools),
            "rollout.tool.corpus": corpus,
            "reward.name": reward,
            "signal.name": signal,
            "steps": steps,
            "eval.tasks": eval_tasks,
            "rollout.seed": seed,
        },
        settings=settings or (),
    )
    from deltah.engines.trl.training import train
    from deltah.engines.trl.trl_compat import rank

    with reporting_phases(f"train {resolved.reward.name}", "evaluate", hidden=rank() > 0) as (training, held_out):
        run = train(resolved, out, progress=training, evaluation_progress=held_out)
    if rank():  # torchrun started several processes: the first one speaks
        return
    typer.echo(f"model   {run.model}")
    typer.echo(f"report  deltah report {run.path}")

"""`deltah train`: train a model that uses tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltah.cli import arguments
from deltah.cli.settings import resolve
from deltah.cli.terminal import reporting


def command(  # noqa: PLR0913 - the options of a command line
    tasks: arguments.Tasks = None,
    model: arguments.Model = None,
    tools: arguments.Tools = None,
    corpus: arguments.Corpus = None,
    reward: Annotated[
        str | None, typer.Option(help="One of {rewards}; or package.module:function (default: sparse).")
    ] = None,
    signal: Annotated[
        str | None, typer.Option(help="One of {all_signals}; or package.module:function (default: delta_h).")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Number of optimiser steps.")] = None,
    eval_tasks: Annotated[str | None, typer.Option(help="Task file to evaluate the trained model on.")] = None,
    seed: arguments.Seed = None,
    out: Annotated[Path, typer.Option(help="Run directory. An interrupted run continues there.")] = Path("runs/train"),
    config: arguments.ConfigFile = None,
    settings: arguments.Settings = None,
) -> None:
    """Train a model that uses tools, with GRPO and an entropy reward."""
    from deltah.engines.config import TrainConfig

    options = {"tasks": tasks, "reward.name": reward, "signal.name": signal, "steps": steps, "eval.tasks": eval_tasks}
    options |= arguments.agent(model, tools, corpus, seed)
    resolved = resolve(TrainConfig, config, options=options, settings=settings or ())
    from deltah.engines.trl.training import train
    from deltah.engines.trl.trl_compat import rank

    with reporting(f"train {resolved.reward.name}", "evaluate", hidden=rank() > 0) as (training, held_out):
        run = train(resolved, out, progress=training, evaluation_progress=held_out)
    if not rank():  # of several processes that torchrun started the first one speaks
        typer.echo(f"model   {run.model}\nreport  deltah report {run.path}")

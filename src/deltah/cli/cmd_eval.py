"""`deltah eval`: evaluate a model on held-out tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltah.cli import arguments
from deltah.cli.settings import resolve
from deltah.cli.terminal import print_summaries, reporting


def command(  # noqa: PLR0913 - the options of a command line
    tasks: arguments.Tasks = None,
    model: arguments.Model = None,
    tools: arguments.Tools = None,
    corpus: arguments.Corpus = None,
    limit: arguments.Limit = None,
    seed: arguments.Seed = None,
    out: Annotated[Path, typer.Option(help="Run directory.")] = Path("runs/eval"),
    config: arguments.ConfigFile = None,
    settings: arguments.Settings = None,
) -> None:
    """Evaluate a model on held-out tasks, sampled and greedy."""
    from deltah.engines.config import EvaluateConfig

    options = {"eval": {}, "eval.tasks": tasks, "eval.limit": limit, **arguments.agent(model, tools, corpus, seed)}
    resolved = resolve(EvaluateConfig, config, options=options, settings=settings or ())
    from deltah.calls.grading import outcome_title
    from deltah.engines.trl.rollout import evaluate
    from deltah.engines.trl.trl_compat import rank
    from deltah.report.data import load_arm
    from deltah.stats.summary import summarise

    if rank():  # of several processes that torchrun started the first one does it
        return
    with reporting("evaluate") as (report,):
        run = evaluate(resolved, out, progress=report)
    evaluations = load_arm(run.path).evaluations
    title = outcome_title(grader for evaluation in evaluations.values() for grader in evaluation.met("grader"))
    print_summaries({name: summarise(evaluation.table) for name, evaluation in evaluations.items()}, outcome=title)
    typer.echo(f"traces  {run.path / 'eval'}\nreport  deltah report {run.path}")

"""`deltah eval`: a model on held-out tasks, sampled and greedy, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltah.cli.arguments import ConfigFile, Corpus, Limit, Model, Seed, Settings, Tools, split_names
from deltah.cli.progress import reporting
from deltah.cli.settings import resolve
from deltah.cli.terminal import print_summaries


def command(  # noqa: PLR0913 - the options of a command line
    tasks: Annotated[str | None, typer.Option(help="Task file: JSONL or Parquet.")] = None,
    model: Model = None,
    tools: Tools = None,
    corpus: Corpus = None,
    limit: Limit = None,
    seed: Seed = None,
    out: Annotated[Path, typer.Option(help="Run directory.")] = Path("runs/eval"),
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Evaluate a model on held-out tasks, sampled and greedy."""
    from deltah.engines.config import EvaluateConfig

    resolved = resolve(
        EvaluateConfig,
        config,
        options={
            "eval.tasks": tasks,
            "eval.limit": limit,
            "rollout.model": model,
            "rollout.tools": split_names(tools),
            "rollout.tool.corpus": corpus,
            "rollout.seed": seed,
        },
        settings=settings or (),
        defaults={"eval": {}},
    )
    from deltah.calls.grading import outcome_title
    from deltah.engines.trl.rollout import evaluate
    from deltah.engines.trl.trl_compat import rank
    from deltah.report.data import load_arm
    from deltah.stats.summary import summarise

    if rank():  # torchrun started several processes: the first one does it
        return
    with reporting("evaluate") as report:
        run = evaluate(resolved, out, progress=report)
    evaluations = load_arm(run.path).evaluations
    title = outcome_title(grader for evaluation in evaluations.values() for grader in evaluation.met("grader"))
    print_summaries({name: summarise(evaluation.table) for name, evaluation in evaluations.items()}, outcome=title)
    typer.echo(f"traces  {run.path / 'eval'}\nreport  deltah report {run.path}")

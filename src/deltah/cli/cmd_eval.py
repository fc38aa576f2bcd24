"""`deltah eval`: a model on held-out tasks, sampled and greedy, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltah.cli.cmd_train import Settings, split_names
from deltah.cli.progress import reporting
from deltah.cli.settings import resolve
from deltah.cli.tables import print_summaries


def command(  # noqa: PLR0913 - the options of a command line
    tasks: Annotated[str | None, typer.Option(help="Task file, JSONL or Parquet.")] = None,
    model: Annotated[str | None, typer.Option(help="Directory, hub id, or 'lab', the embedded agent.")] = None,
    tools: Annotated[str | None, typer.Option(help="Comma-separated: search, python, package.module:function.")] = None,
    corpus: Annotated[str | None, typer.Option(help="JSONL of documents for the search tool.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first so many tasks.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    out: Annotated[Path, typer.Option(help="Run directory for the traces.")] = Path("runs/eval"),
    config: Annotated[Path | None, typer.Option(help="TOML file with the same keys.")] = None,
    settings: Settings = None,
) -> None:
    """Evaluate a tool-using model on held-out tasks, sampled and greedy."""
    from deltah.engines.config import EvaluateConfig

    resolved = resolve(
        EvaluateConfig,
        config,
        options={
            "eval.tasks": tasks,
            "eval.limit": limit,
            "rollout.model": model,
            "rollout.tools": None if tools is None else split_names(tools),
            "rollout.tool.corpus": corpus,
            "rollout.seed": seed,
        },
        settings=settings or (),
        defaults={"eval": {}},
    )
    from deltah.calls.outcomes import outcome_title
    from deltah.engines.trl.processes import rank
    from deltah.engines.trl.rollout import evaluate
    from deltah.report.load import load_arm

    if rank():  # torchrun started several processes: the first one does it
        return
    with reporting("evaluate") as report:
        run = evaluate(resolved, out, progress=report)
    evaluations = load_arm(run.path).evaluations
    title = outcome_title(grader for evaluation in evaluations.values() for grader in evaluation.graders)
    print_summaries({name: evaluation.summarise() for name, evaluation in evaluations.items()}, outcome=title)
    typer.echo(f"traces  {run.path / 'eval'}\nreport  deltah report {run.path}")

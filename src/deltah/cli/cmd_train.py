"""`deltah train`, `deltah eval` and `deltah rollout`: let a model with tools act on tasks, with or without training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from deltah.cli.arguments import ConfigFile, Corpus, Limit, Model, Seed, Settings, Tools, split_names
from deltah.cli.settings import resolve
from deltah.cli.terminal import print_summaries, reporting, reporting_phases
from deltah.errors import ConfigError
from deltah.text_format import count, share

TRACE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".gz", ".zst", ".parquet")
"""Suffixes of a trace file; any other target of a rollout is a run directory."""

Tasks = Annotated[str | None, typer.Option(help="Task file: JSONL or Parquet.")]


def train(  # noqa: PLR0913 - the options of a command line
    tasks: Tasks = None,
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

    options = {"tasks": tasks, "reward.name": reward, "signal.name": signal, "steps": steps, "eval.tasks": eval_tasks}
    options |= _agent(model, tools, corpus, seed)
    resolved = resolve(TrainConfig, config, options=options, settings=settings or ())
    from deltah.engines.trl.training import train
    from deltah.engines.trl.trl_compat import rank

    with reporting_phases(f"train {resolved.reward.name}", "evaluate", hidden=rank() > 0) as (training, held_out):
        run = train(resolved, out, progress=training, evaluation_progress=held_out)
    if not rank():  # of several processes that torchrun started the first one speaks
        typer.echo(f"model   {run.model}\nreport  deltah report {run.path}")


def evaluate(  # noqa: PLR0913 - the options of a command line
    tasks: Tasks = None,
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

    options = {"eval.tasks": tasks, "eval.limit": limit, **_agent(model, tools, corpus, seed)}
    resolved = resolve(EvaluateConfig, config, options=options, settings=settings or (), defaults={"eval": {}})
    from deltah.calls.grading import outcome_title
    from deltah.engines.trl.rollout import evaluate
    from deltah.engines.trl.trl_compat import rank
    from deltah.report.data import load_arm
    from deltah.stats.summary import summarise

    if rank():  # of several processes that torchrun started the first one does it
        return
    with reporting("evaluate") as report:
        run = evaluate(resolved, out, progress=report)
    evaluations = load_arm(run.path).evaluations
    title = outcome_title(grader for evaluation in evaluations.values() for grader in evaluation.met("grader"))
    print_summaries({name: summarise(evaluation.table) for name, evaluation in evaluations.items()}, outcome=title)
    typer.echo(f"traces  {run.path / 'eval'}\nreport  deltah report {run.path}")


def rollout(  # noqa: PLR0913 - the options of a command line
    tasks: Annotated[str, typer.Option(help="Task file: JSONL or Parquet.")],
    out: Annotated[Path, typer.Option(help="Trace file (.jsonl, .jsonl.zst, .parquet) or run directory.")],
    model: Model = None,
    tools: Tools = None,
    corpus: Corpus = None,
    samples: Annotated[int, typer.Option(help="Trajectories per task.", min=1)] = 1,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always take the most likely token.")] = False,
    limit: Limit = None,
    seed: Seed = None,
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Run a model on tasks and write its trajectories, with exact entropies."""
    from deltah.engines.config import RolloutRunConfig
    from deltah.runs import RunDirectory, claim, open_run

    options = _agent(model, tools, corpus, seed)
    resolved = resolve(RolloutRunConfig, config, options=options, settings=settings or ()).rollout
    asked = {"rollout": asdict(resolved), "tasks": tasks, "limit": limit, "samples": samples, "greedy": greedy}
    is_file = out.suffix in TRACE_SUFFIXES
    if is_file and out.is_dir():
        raise ConfigError(f"cannot write the file {out}: it is a directory; choose another name")
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
            with reporting("rollout") as report:
                report(done, job.total, {})
                for number in job.proceed(done):
                    report(number, job.total, {})
            job.finish(traces, remove_run=is_file)
    typer.echo(f"{count(job.total, 'trajectory')} in {traces}; next: deltah score {traces}")


def _agent(model: str | None, tools: str | None, corpus: str | None, seed: int | None) -> dict[str, Any]:
    """Options of the agent, by key of the configuration."""
    return {
        "rollout.model": model,
        "rollout.tools": split_names(tools),
        "rollout.tool.corpus": corpus,
        "rollout.seed": seed,
    }

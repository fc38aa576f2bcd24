"""`deltah demo`: the whole method on the embedded agent, on two CPU cores, in minutes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from deltah.calls.grading import outcome_title
from deltah.cli.arguments import split_names
from deltah.cli.terminal import display, numbers_of, print_summaries
from deltah.errors import ConfigError
from deltah.text_format import count

if TYPE_CHECKING:
    from deltah.lab.demo import DemoConfig, Job
    from deltah.report.data import ReportData


def command(
    out: Annotated[Path, typer.Option(help="Directory of the demo. An interrupted demo continues there.")] = Path(
        "runs/demo"
    ),
    arms: Annotated[str, typer.Option(help="Comma-separated rewards to train with.")] = "outcome,sparse,dense",
    controls: Annotated[
        bool, typer.Option("--controls", help="Also train with the penalty and shuffled controls.")
    ] = False,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps per reward (default: 28).", min=1)] = None,
    eval_tasks: Annotated[
        int | None, typer.Option(help="Number of evaluation questions (default: 200).", min=10)
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Train the embedded agent with several rewards and compare the results."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from deltah.core.rewards import REWARDS
    from deltah.lab.demo import CONTROLS, EVAL_TASKS, STEPS, DemoConfig

    names = tuple(dict.fromkeys([*(split_names(arms) or ()), *(CONTROLS if controls else [])]))
    if not names:
        raise ConfigError(f"--arms names no arm; choose from: {', '.join(REWARDS)}")
    for name in names:
        REWARDS.resolve(name)
    config = DemoConfig(arms=names, steps=steps or STEPS, eval_tasks=eval_tasks or EVAL_TASKS, seed=seed)
    console = Console()
    rewards = f"{count(len(config.arms), 'reward')}: {', '.join(config.arms)}"
    console.print(f"Training the embedded agent with {rewards} ({count(config.steps, 'step')} each, seed {seed}).")
    began = time.perf_counter()
    data = _run_shown(config, out)
    _print_result(data)
    console.print(f"finished in {time.perf_counter() - began:.0f} s")
    console.print(f"page    {(out / 'report.html').resolve().as_uri()}", soft_wrap=True)
    console.print(f"calls   deltah score {out / config.arms[0] / 'traces'}", soft_wrap=True)


def _run_shown(config: DemoConfig, out: Path) -> ReportData:
    """Run with one bar for each process."""
    from deltah.lab.demo import run_demo

    with display() as shown:
        phases: dict[str, str] = {}

        def watch(states: Sequence[Job]) -> None:
            for job in states:
                shown.show(
                    job.name,
                    description=f"{job.name:<8} {job.phase}",
                    done=job.done,
                    total=job.total,
                    numbers=numbers_of(job.metrics or {}),
                    waiting=job.phase == "waiting",
                    # A new phase has a speed of its own; the end has none, and keeps the time of what it ends.
                    afresh=job.phase not in ("done", phases.get(job.name)),
                )
                phases[job.name] = job.phase

        return run_demo(config, out, watch=watch)


def _print_result(data: ReportData) -> None:
    """The table of this run: sampled and greedy, all questions, then those that need tools and those that do not."""
    from deltah.report.data import SUBSETS
    from deltah.stats.summary import summarise

    seconds = {arm.name: arm.seconds for arm in data.arms}
    title = outcome_title(data.graders)
    for decoding in data.evaluation_names:
        found = {arm.name: arm.evaluations[decoding] for arm in data.columns if decoding in arm.evaluations}
        print_summaries(
            {name: summarise(evaluation.table) for name, evaluation in found.items()},
            title=f"{decoding} decoding, 95 % intervals clustered by question",
            seconds=seconds,
            outcome=title,
        )
        subsets = {"tools needed": "need a tool", "no tool needed": "need no tool"} if decoding == "sampled" else {}
        for subset, label in subsets.items():
            parts = {name: summarise(evaluation.table, where=SUBSETS[subset]) for name, evaluation in found.items()}
            print_summaries(
                {name: summary for name, summary in parts.items() if summary.trajectories},
                title=f"{decoding} decoding, questions that {label}",
                columns=("outcome", "calls_per_trajectory", "correct_per_call", "reduction_rate"),
                outcome=title,
            )

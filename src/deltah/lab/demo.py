"""The demo: evaluate the embedded agent, train each arm from it with the same budget, evaluate again, report.

The agent is evaluated in start/ and each arm is a `deltah train` in a run directory of its own, all in processes that
end with the demo. An interrupted demo continues arm by arm. World, configurations and logs are in world/ and logs/.
The numbers of the recipe suit a model of one million parameters: a real one wants a far smaller learning rate.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from deltah.calls.grading import signal_of
from deltah.core.metrics import batch_metrics
from deltah.core.rewards import RewardConfig
from deltah.core.signals import SignalConfig, score
from deltah.engines.config import EvalConfig, EvaluateConfig, RolloutConfig, TrainConfig
from deltah.errors import TrainingError, missing_dependency
from deltah.lab.questions import write_split
from deltah.lab.world import Split
from deltah.parallel import start, stop, stop_on_termination
from deltah.report.data import ReportData, load_arm
from deltah.report.page import write_report
from deltah.runs import DONE, RunDirectory, open_run, package_versions, write_atomic
from deltah.tasks import read_tasks
from deltah.tools import ToolConfig, read_corpus
from deltah.traces import read_traces

ARMS = ("outcome", "sparse", "dense")
CONTROLS = ("penalty", "shuffled")
"""Arms that use no entropy; no claim about the others stands without them."""
STEPS = 28
"""Optimiser steps of each arm."""
TRAIN_TASKS = 2000
EVAL_TASKS = 200
SIGNAL = SignalConfig(margin=0.02)
"""A dead band for this agent's noise: docs/lab.md says why it is 0.02 nats."""
_POLL_S = 0.5


def rollout_config(seed: int = 0) -> RolloutConfig:
    """Rollouts of the embedded agent."""
    return RolloutConfig(
        model="lab",
        tools=("search", "python"),
        max_completion_length=400,
        max_turn_tokens=64,
        max_rounds=8,
        batch_size=48,
        device="cpu",
        seed=seed,
    )


def write_world(path: Path, *, seed: int = 0, eval_tasks: int = EVAL_TASKS) -> None:
    """Write the training and the evaluation split; fresh names of the evaluation occur in no training world."""
    write_split(path / "train", Split.TRAIN, seed=seed, n=TRAIN_TASKS)
    write_split(path / "eval", Split.EVAL, seed=seed + 1, n=eval_tasks)


def composition(world: str | Path, *, limit: int | None = None) -> str:
    """Sentence on the first `limit` evaluation questions of a folder that `write_world` wrote; its parts overlap.

    A question names something unseen if a document that answers it is not in the training corpus: the subject's name is
    then in no training or cold-start world. Every other question is about facts known by heart, or is arithmetic.
    """
    train, held_out = Path(world) / "train", Path(world) / "eval"
    documents = {document.id for document in read_corpus(train / "corpus.jsonl")}
    asked = read_tasks(held_out / "tasks.jsonl")[:limit]
    trained = {task.question for task in read_tasks(train / "tasks.jsonl")}
    unseen = sum(not documents.issuperset(task.supporting) for task in asked)
    known = sum(not task.metadata["needs_tools"] for task in asked)
    repeated = sum(task.question in trained for task in asked)
    return (
        f"{len(asked)} questions ({len({task.question for task in asked})} different): {unseen} name an entity unseen "
        f"in training, {known} need no tool, {repeated} stand word for word among the training questions"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """Options of the demo."""

    arms: tuple[str, ...] = ARMS
    steps: int = STEPS
    eval_tasks: int = EVAL_TASKS
    """Questions of the evaluation world."""
    seed: int = 0
    signal: SignalConfig = SIGNAL
    """How calls are judged, in every arm and at the start."""

    @property
    def shared(self) -> dict[str, Any]:
        """Options that may not change when a demo is continued; arms may be added."""
        margin = self.signal.resolved_margin
        return {"steps": self.steps, "eval_tasks": self.eval_tasks, "seed": self.seed, "margin": margin}

    def evaluation(self, world: Path) -> EvaluateConfig:
        """`deltah eval` of the agent before training, on the first questions of the evaluation world."""
        split = world / "eval"
        return EvaluateConfig(
            rollout=rollout_config(self.seed),
            eval=EvalConfig(
                tasks=str(split / "tasks.jsonl"), corpus=str(split / "corpus.jsonl"), limit=self.eval_tasks
            ),
            signal=self.signal,
        )

    def training(self, world: Path, arm: str) -> TrainConfig:
        """`deltah train` of one arm on a world written by `write_world`."""
        split, before = world / "train", self.evaluation(world)
        return TrainConfig(
            tasks=str(split / "tasks.jsonl"),
            rollout=replace(before.rollout, tool=ToolConfig(corpus=str(split / "corpus.jsonl"))),
            reward=RewardConfig(name=arm),
            signal=self.signal,
            eval=before.eval,
            steps=self.steps,
            prompts_per_step=6,
            generations=8,
            learning_rate=1e-3,
            warmup_steps=5,
            save_every=5,
            trace_every=10,
            trainer={"adam_beta2": 0.95, "max_grad_norm": 1.0},
        )


@dataclass(slots=True, kw_only=True)
class Job:
    """One process of the demo and its progress, read from its run directory."""

    name: str
    arguments: list[str]
    log: Path
    run: RunDirectory
    total: int
    """Steps, or trajectories of an evaluation."""
    done: int = 0
    phase: str = "waiting"
    metrics: dict[str, float] | None = None
    """Of the last training step; of a finished run, of its sampled evaluation."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether its process was started and has not ended."""
        return self.process is not None and self.process.poll() is None


def run_demo(
    config: DemoConfig, out: Path, *, watch: Callable[[Sequence[Job]], None] = lambda jobs: None
) -> ReportData:
    """Run or continue the demo in a directory, and write its report; `watch` is called about twice a second."""
    for package in ("torch", "trl", "datasets", "pydantic_monty", "bm25s"):
        if find_spec(package) is None:
            raise missing_dependency(package, extra="train", purpose="The demo")
    open_run(out, config.shared, command="demo")
    world = out / "world"
    if not (world / "eval" / "tasks.jsonl").exists():
        write_world(world, seed=config.seed, eval_tasks=config.eval_tasks)
    jobs = [_job(out, arm, "train", config.training(world, arm), total=config.steps) for arm in config.arms]
    jobs.append(_job(out, "start", "eval", config.evaluation(world), total=2 * config.eval_tasks))
    with stop_on_termination():
        try:
            _run_all(jobs, watch)
        finally:
            stop([job.process for job in jobs if job.process is not None])
    data = report_data(out, config.arms, config)
    write_report(data, out / "report.html")
    return data


def report_data(out: Path, arms: Sequence[str], config: DemoConfig) -> ReportData:
    """Read a finished demo."""
    return ReportData(
        title="deltah demo: the embedded agent, before and after",
        arms=tuple(load_arm(out / arm, name=arm) for arm in arms),
        start=load_arm(out / "start").evaluations,
        facts={
            "model": "embedded agent (about one million parameters), the same cold start for every arm",
            "budget": f"{config.steps} steps of 6 prompts x 8 trajectories per arm",
            "dead band": f"a call is reduced where entropy falls by more than {config.signal.resolved_margin:g} nats",
            "evaluation": str(composition(out / "world", limit=config.eval_tasks)),
            "training seed": str(config.seed),
            "cores": str(os.cpu_count()),
            "versions": ", ".join(f"{name} {version}" for name, version in package_versions().items()),
        },
    )


def _job(out: Path, name: str, command: str, config: TrainConfig | EvaluateConfig, *, total: int) -> Job:
    path = out / "logs" / f"{name}.json"
    write_atomic(path, json.dumps(config.to_dict(), indent=1))
    arguments = [command, "--config", str(path), "--out", str(out / name)]
    return Job(name=name, arguments=arguments, log=path.with_suffix(".log"), run=RunDirectory(out / name), total=total)


def _run_all(jobs: Sequence[Job], watch: Callable[[Sequence[Job]], None]) -> None:
    """Run jobs, as many at a time as there are cores; the last ones share the cores that fell free."""
    cores = os.cpu_count() or 1
    waiting = [job for job in jobs if not job.run.finished]
    while True:
        running = [job for job in jobs if job.running]
        while waiting and len(running) < cores:
            job = waiting.pop(0)
            threads = str(max(1, cores // (len(running) + len(waiting) + 1)))  # more than cores wait for one another
            environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
            job.phase, job.process = "starting", start("deltah", job.arguments, log=job.log, env=environment)
            running.append(job)
        for job in jobs:
            _refresh(job)
        watch(jobs)
        if not waiting and not running:
            return
        time.sleep(_POLL_S)


def _refresh(job: Job) -> None:
    """Read a job's progress from its run directory; a `TrainingError` if its process failed."""
    if job.process is not None and job.process.poll():
        lines = [line for line in job.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        reason = lines[-1].strip().removeprefix("error: ") if lines else "no output"
        raise TrainingError(f"{job.name} failed: {reason} (whole output: {job.log})")
    if status := job.run.status:
        job.phase, job.done, job.total = status["phase"], status["done"], status["total"]
    if job.run.finished:
        job.phase, job.done, job.metrics = DONE, job.total, _final_metrics(job.run)
    else:  # a training batch says nothing about the model that is evaluated after it
        job.metrics = next(reversed(list(job.run.read_metrics())), None) if job.phase == "training" else None


@cache
def _final_metrics(run: RunDirectory) -> dict[str, float]:
    """Metrics of a finished run's sampled evaluation; empty if it has none."""
    path = run.evaluation("sampled")
    trajectories = list(read_traces(path)) if path.exists() else []
    outcomes = [np.nan if trajectory.outcome is None else trajectory.outcome for trajectory in trajectories]
    signals = [score(trajectory, signal_of(path)) for trajectory in trajectories]
    return batch_metrics(signals, np.array(outcomes)) if trajectories else {}

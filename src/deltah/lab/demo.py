"""The lab's training recipe: what the demo runs, as an ordinary `TrainConfig`.

Numbers come from docs/results/lab.md. They suit a model of one million parameters on two CPU cores; a real language
model wants a far smaller learning rate.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from deltah.core.metrics import batch_metrics
from deltah.core.rewards import RewardConfig
from deltah.core.signals import SignalConfig, score
from deltah.engines.config import EvalConfig, EvaluateConfig, RolloutConfig, TrainConfig
from deltah.errors import TrainingError, missing_dependency
from deltah.lab.questions import Question, questions, write_split
from deltah.lab.subprocesses import start, stop
from deltah.lab.world import Split, World
from deltah.report.data import ReportData
from deltah.report.load import load_arm
from deltah.report.render import write_report
from deltah.runs.directory import DONE, RunDirectory, open_run, package_versions, write_atomic
from deltah.tasks import Task, read_tasks
from deltah.termination import stop_on_termination
from deltah.tools import ToolConfig
from deltah.tools.search import read_corpus
from deltah.traces import read_traces

ARMS = ("outcome", "sparse", "dense")
"""Arms of the demo."""
CONTROLS = ("penalty", "shuffled")
"""Arms that know no entropy; no claim about the others stands without them."""
STEPS = 28
"""Optimiser steps of each arm of the demo."""
TRAIN_TASKS = 2000
EVAL_TASKS = 200


SIGNAL = SignalConfig(margin=0.02)
"""A dead band for this agent's noise: docs/lab.md says why it is 0.02 nats."""


def rollout_config(seed: int = 0) -> RolloutConfig:
    """How the embedded agent acts."""
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


def eval_config(world: Path, limit: int = EVAL_TASKS) -> EvalConfig:
    """The first `limit` questions of the evaluation world."""
    split = world / "eval"
    return EvalConfig(tasks=str(split / "tasks.jsonl"), corpus=str(split / "corpus.jsonl"), limit=limit)


def train_config(
    world: Path,
    reward: str,
    *,
    steps: int,
    seed: int,
    eval_tasks: int = EVAL_TASKS,
    signal: SignalConfig = SIGNAL,
) -> TrainConfig:
    """One arm of the demo on a world written by `write_world`."""
    tool = ToolConfig(corpus=str(world / "train" / "corpus.jsonl"))
    return TrainConfig(
        tasks=str(world / "train" / "tasks.jsonl"),
        rollout=replace(rollout_config(seed), tool=tool),
        reward=RewardConfig(name=reward),
        signal=signal,
        eval=eval_config(world, eval_tasks),
        steps=steps,
        prompts_per_step=6,
        generations=8,
        learning_rate=1e-3,
        warmup_steps=5,
        save_every=5,
        trace_every=10,
        trainer={"adam_beta2": 0.95, "max_grad_norm": 1.0},
    )


def write_world(path: Path, *, seed: int = 0, eval_tasks: int = EVAL_TASKS) -> None:
    """Write the training and the evaluation split; fresh names of the evaluation occur in no training world."""
    write_split(path / "train", Split.TRAIN, seed=seed, n=TRAIN_TASKS)
    write_split(path / "eval", Split.EVAL, seed=_eval_seed(seed), n=eval_tasks)


def eval_questions(seed: int = 0) -> list[Question]:
    """Questions of the evaluation split that `write_world` writes, with their plans: what only a study may know."""
    world_seed = _eval_seed(seed)
    return list(questions(World(world_seed, Split.EVAL), EVAL_TASKS, seed=world_seed))


def _eval_seed(seed: int) -> int:
    return seed + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """What an evaluation asks, counted from the written files alone; the three parts overlap.

    A question names something unseen if a document that answers it is not in the training corpus: the subject's name is
    then in no training or cold-start world. Every other question is about facts known by heart, or is arithmetic.
    """

    questions: int
    distinct: int
    """Different texts."""
    known: int
    """Need no tool: every step was learned by heart."""
    unseen: int
    """Name an entity that training does not."""
    repeated: int
    """Stand word for word among the training questions."""

    def __str__(self) -> str:
        """One clause for a page or a terminal."""
        return (
            f"{self.questions} questions ({self.distinct} different): {self.unseen} name an entity unseen in training, "
            f"{self.known} need no tool, {self.repeated} stand word for word among the training questions"
        )


def composition(world: str | Path, *, limit: int | None = None) -> Composition:
    """Count the evaluation questions of a folder that `write_world` wrote."""
    train, held_out = Path(world) / "train", Path(world) / "eval"
    documents = {document.id for document in read_corpus(train / "corpus.jsonl")}
    return _count(read_tasks(held_out / "tasks.jsonl")[:limit], read_tasks(train / "tasks.jsonl"), documents)


def _count(asked: Sequence[Task], trained: Sequence[Task], documents: set[str]) -> Composition:
    texts = {task.question for task in trained}
    return Composition(
        questions=len(asked),
        distinct=len({task.question for task in asked}),
        known=sum(not task.metadata["needs_tools"] for task in asked),
        unseen=sum(not documents.issuperset(task.supporting) for task in asked),
        repeated=sum(task.question in texts for task in asked),
    )


_POLL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """What the demo runs."""

    arms: tuple[str, ...] = ARMS
    steps: int = STEPS
    eval_tasks: int = EVAL_TASKS
    """Questions of the evaluation world."""
    seed: int = 0
    signal: SignalConfig = SIGNAL
    """How calls are judged, in every arm and at the start."""

    @property
    def shared(self) -> dict[str, Any]:
        """What every arm has in common; arms may be added later, each has a directory of its own."""
        margin = self.signal.resolved_margin
        return {"steps": self.steps, "eval_tasks": self.eval_tasks, "seed": self.seed, "margin": margin}


@dataclass(slots=True, kw_only=True)
class JobState:
    """Progress of one process, read from its run directory."""

    name: str
    total: int
    done: int = 0
    metrics: dict[str, float] | None = None
    """Of the last training step; of a finished run, of its sampled evaluation."""
    phase: str = "waiting"


Watch = Callable[[Sequence[JobState]], None]


def run_demo(config: DemoConfig, out: Path, *, watch: Watch | None = None) -> ReportData:
    """Run or continue the demo.

    Args:
        config: Arms, steps, questions and seed.
        out: Directory of the demo.
        watch: Called about twice a second with the state of every process.

    Returns:
        What the report shows; `report.html` and `report.json` are written.

    Raises:
        ConfigError: if `out` holds a demo of another configuration.
        TrainingError: if a process failed; its log is named.
        MissingDependencyError: if the extra `train` is not installed.
    """
    for package in ("torch", "trl", "datasets", "pydantic_monty", "bm25s"):
        if find_spec(package) is None:
            raise missing_dependency(package, extra="train", purpose="The demo")
    arms = config.arms
    open_run(out, config.shared, command="demo")
    if not (out / "world" / "eval" / "tasks.jsonl").exists():
        write_world(out / "world", seed=config.seed, eval_tasks=config.eval_tasks)
    jobs = [*(_arm_job(out, arm, config) for arm in arms), _start_job(out, config)]
    with stop_on_termination(), _stopped(jobs):
        _run_all(jobs, watch or (lambda states: None))
    data = report_data(out, arms, config)
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
            "budget": f"{config.steps} steps of 6 prompts x 8 trajectories an arm",
            "dead band": f"a call is reduced where entropy falls by more than {config.signal.resolved_margin:g} nats",
            "evaluation": str(composition(out / "world", limit=config.eval_tasks)),
            "training seed": str(config.seed),
            "cores": str(os.cpu_count()),
            "versions": ", ".join(f"{name} {version}" for name, version in package_versions().items()),
        },
    )


@dataclass(slots=True, kw_only=True)
class _Job:
    """One process: its arguments, and where its progress can be read."""

    state: JobState
    arguments: list[str]
    log: Path
    run: RunDirectory
    signal: SignalConfig
    final: dict[str, float] | None = None
    """Metrics of the finished run; None before they were read."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def finished(self) -> bool:
        """Whether it is complete."""
        return (self.run.path / "result.json").exists()

    @property
    def running(self) -> bool:
        """Whether its process was started and has not ended."""
        return self.process is not None and self.process.poll() is None

    def start(self, threads: int) -> None:
        """Start the process with its share of the cores: more threads than cores would wait for one another."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self.state.phase = "starting"
        self.process = start("deltah", self.arguments, log=self.log, env=environment)


def _start_job(out: Path, config: DemoConfig) -> _Job:
    """`deltah eval` of the agent before training."""
    held_out = eval_config(out / "world", config.eval_tasks)
    resolved = EvaluateConfig(rollout=rollout_config(config.seed), eval=held_out, signal=config.signal)
    return _job("start", "eval", resolved.to_dict(), out, total=2 * config.eval_tasks, signal=config.signal)


def _arm_job(out: Path, arm: str, config: DemoConfig) -> _Job:
    """`deltah train` of one arm."""
    resolved = train_config(
        out / "world",
        arm,
        steps=config.steps,
        seed=config.seed,
        eval_tasks=config.eval_tasks,
        signal=config.signal,
    )
    return _job(arm, "train", resolved.to_dict(), out, total=config.steps, signal=config.signal)


def _job(name: str, command: str, config: dict[str, Any], out: Path, *, total: int, signal: SignalConfig) -> _Job:
    path = out / "logs" / f"{name}.json"
    write_atomic(path, json.dumps(config, indent=1))
    return _Job(
        state=JobState(name=name, total=total),
        arguments=[command, "--config", str(path), "--out", str(out / name)],
        log=path.with_suffix(".log"),
        run=RunDirectory(out / name),
        signal=signal,
    )


@contextmanager
def _stopped(jobs: Sequence[_Job]) -> Iterator[None]:
    """On leaving, an error or an interrupt included, no job is left running."""
    try:
        yield
    finally:
        stop([job.process for job in jobs if job.process is not None])


def _run_all(jobs: Sequence[_Job], watch: Watch) -> None:
    """Run jobs, as many at a time as there are cores; the last ones share the cores that fell free."""
    cores = os.cpu_count() or 1
    waiting = [job for job in jobs if not job.finished]
    while True:
        running = [job for job in jobs if job.running]
        while waiting and len(running) < cores:
            job = waiting.pop(0)
            job.start(threads=max(1, cores // (len(running) + len(waiting) + 1)))
            running.append(job)
        for job in jobs:
            _refresh(job)
        watch([job.state for job in jobs])
        if not waiting and not running:
            return
        time.sleep(_POLL_S)


def _refresh(job: _Job) -> None:
    """Read a job's progress from its run directory."""
    code = None if job.process is None else job.process.poll()
    if code:
        raise TrainingError(f"{job.state.name} failed: {_last_line(job.log)} (whole output: {job.log})")
    state, status = job.state, job.run.status
    if status:
        state.phase, state.done, state.total = status["phase"], status["done"], status["total"]
    if job.finished:
        if job.final is None:
            job.final = _final_metrics(job)
        state.metrics, state.done, state.phase = job.final, state.total, DONE
    else:
        # A batch of training says nothing of the model that is evaluated after it.
        state.metrics = next(reversed(list(job.run.read_metrics())), None) if state.phase == "training" else None


def _final_metrics(job: _Job) -> dict[str, float]:
    """What the finished run's sampled evaluation says; empty if it has none."""
    path = job.run.evaluation("sampled")
    trajectories = list(read_traces(path)) if path.exists() else []
    outcomes = [np.nan if trajectory.outcome is None else trajectory.outcome for trajectory in trajectories]
    signals = [score(trajectory, job.signal) for trajectory in trajectories]
    return batch_metrics(signals, np.array(outcomes)) if trajectories else {}


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip().removeprefix("error: ") if lines else "no output"

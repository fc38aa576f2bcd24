"""`deltah rollout`: run a model with its tools on tasks and write the traces.

`--out` is a trace file or a run directory. Trajectories are written as they come, a batch of 64 at a time, into the run
directory, which for a trace file is `FILE.partial/` beside it, removed when the file is complete::

    run.json            model, tools, tasks, samples, seed
    partial.jsonl       trajectories so far, in the order of the tasks
    eval/NAME.jsonl.zst all of them, where --out is a directory; NAME is sampled or greedy

The same command continues an interrupted one after the last trajectory that was written. It then samples with another
seed, so that no draw is repeated: the result is an equally good sample, but not the same one.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from deltah.cli.arguments import ConfigFile, Corpus, Limit, Model, Seed, Settings, Tools, split_names
from deltah.cli.progress import reporting
from deltah.cli.settings import resolve
from deltah.core.types import Trajectory
from deltah.errors import ConfigError
from deltah.runs.directory import RunDirectory, open_run
from deltah.text_format import count, share

if TYPE_CHECKING:
    from deltah.engines.config import RolloutConfig
    from deltah.tasks import Task

TRACE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".gz", ".zst", ".parquet")
"""Suffixes of a trace file; any other target is a run directory."""


def command(  # noqa: PLR0913 - the options of a command line
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

    resolved = resolve(
        RolloutRunConfig,
        config,
        options={
            "rollout.model": model,
            "rollout.tools": split_names(tools),
            "rollout.tool.corpus": corpus,
            "rollout.seed": seed,
        },
        settings=settings or (),
    ).rollout
    target = _Target(out, "greedy" if greedy else "sampled")
    target.check()
    from deltah.tasks import read_tasks

    job = _Job(resolved, read_tasks(Path(tasks))[:limit], samples=samples, greedy=greedy)
    asked = {"rollout": asdict(resolved), "tasks": tasks, "limit": limit, "samples": samples, "greedy": greedy}
    if target.begun:
        open_run(target.work, asked, command="rollout")
    if not target.finished:
        _roll_out(job, target, asked)
        target.finish()
    typer.echo(f"{count(job.total, 'trajectory')} in {target.traces}; next: deltah score {target.traces}")


@dataclass(frozen=True, slots=True)
class _Target:
    """Where trajectories are written: into a working directory first, then into the target."""

    out: Path
    decoding: str

    @property
    def is_file(self) -> bool:
        return self.out.suffix in TRACE_SUFFIXES

    @property
    def work(self) -> Path:
        """The run directory."""
        return self.out.with_name(f"{self.out.name}.partial") if self.is_file else self.out

    @property
    def partial(self) -> Path:
        return self.work / "partial.jsonl"

    @property
    def traces(self) -> Path:
        return self.out if self.is_file else RunDirectory(self.out).evaluation(self.decoding)

    @property
    def begun(self) -> bool:
        return (self.work / "run.json").exists()

    @property
    def finished(self) -> bool:
        return (self.work / "result.json").exists()

    def check(self) -> None:
        """Check the target before any work.

        Raises:
            ConfigError: if so.
        """
        if self.is_file and self.out.is_dir():
            raise ConfigError(f"cannot write the file {self.out}: it is a directory; choose another name")
        folder = self.out.parent if self.is_file else self.out
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            reason = "it is a file" if folder.is_file() else (error.strerror or str(error)).lower()
            raise ConfigError(f"cannot write to the directory {folder}: {reason}; choose another one") from error
        if not self.begun and self.work.exists() and (not self.work.is_dir() or any(self.work.iterdir())):
            raise ConfigError(f"{self.work} exists and is not a run of deltah; choose another --out")

    def finish(self) -> None:
        """Write the final file and remove the partial one; safe to repeat after an interruption."""
        from deltah.traces import read_traces, write_traces

        count = write_traces(self.traces, read_traces(self.partial))
        if self.is_file:
            shutil.rmtree(self.work)
            return
        RunDirectory(self.work).finish({"trajectories": count}, total=count)
        self.partial.unlink()


@dataclass(frozen=True, slots=True)
class _Job:
    """The trajectories to make: all samples of the first task, then of the second, and so on."""

    config: RolloutConfig
    tasks: Sequence[Task]
    samples: int
    greedy: bool

    @property
    def total(self) -> int:
        return len(self.tasks) * self.samples

    @property
    def expected(self) -> Iterator[tuple[str, str]]:
        """Id and question of each trajectory, in order."""
        return ((f"{task.id}/{k}", task.question) for task in self.tasks for k in range(self.samples))

    def after(self, done: int) -> Iterator[Trajectory]:
        """Yield the trajectories that follow the first `done` ones."""
        task, made = divmod(done, self.samples)
        if made:
            rest = self._act(self.tasks[task : task + 1], self.samples - made, done)
            for k, trajectory in enumerate(rest, start=made):
                yield replace(trajectory, id=f"{self.tasks[task].id}/{k}")
            task += 1
        if task < len(self.tasks):
            yield from self._act(self.tasks[task:], self.samples, task * self.samples)

    def _act(self, tasks: Sequence[Task], samples: int, done: int) -> Iterator[Trajectory]:
        from deltah.engines.trl.rollout import rollout

        config = replace(self.config, seed=_seed(self.config.seed, done))
        return (trajectory for trajectory, _ in rollout(config, tasks, greedy=self.greedy, samples=samples))


def _seed(seed: int, done: int) -> int:
    """Seed of a continued rollout: with the first seed, the next samples of a task would repeat its first ones."""
    return seed if not done else int(np.random.SeedSequence([seed, done]).generate_state(1)[0] >> 1)


def _roll_out(job: _Job, target: _Target, asked: dict[str, Any]) -> None:
    """Append the missing trajectories to the partial file; a run that cannot start leaves nothing behind."""
    from deltah.traces import TraceWriter

    done = _kept(target.partial, job)
    if done:
        typer.echo(f"continuing after {share(done, job.total, 'trajectory')} in {target.partial}")
    with reporting("rollout") as report:
        report(done, job.total, {})
        writer: TraceWriter | None = None
        try:
            for number, trajectory in enumerate(job.after(done), start=done + 1):
                if writer is None:
                    open_run(target.work, asked, command="rollout")
                    writer = TraceWriter(target.partial)
                writer.write(trajectory)
                report(number, job.total, {})
        finally:
            if writer is not None:
                writer.close()


def _kept(partial: Path, job: _Job) -> int:
    """Number of trajectories that are already written.

    Raises:
        ConfigError: if they answer other questions: the task file has changed since.
    """
    if not partial.exists():
        return 0
    from deltah.traces import read_traces

    kept = 0
    for trajectory, expected in zip_longest(read_traces(partial), job.expected):
        if trajectory is None:
            break
        if (trajectory.id, trajectory.question) != expected:
            raise ConfigError(
                f"{partial}: trajectory {kept + 1} answers {trajectory.question!r} ({trajectory.id}), which is not "
                "what the task file asks there now; give the task file it was made with, or another --out"
            )
        kept += 1
    return kept

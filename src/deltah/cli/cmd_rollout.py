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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from deltah.cli.arguments import ConfigFile, Corpus, Limit, Model, Seed, Settings, Tools, split_names
from deltah.cli.settings import resolve
from deltah.cli.terminal import reporting
from deltah.core.types import Trajectory
from deltah.errors import ConfigError
from deltah.runs.directory import RunDirectory, claim, open_run
from deltah.text_format import count, share

if TYPE_CHECKING:
    from deltah.engines.config import RolloutConfig
    from deltah.tasks import Task

TRACE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".gz", ".zst", ".parquet")
"""Suffixes of a trace file; any other target is a run directory."""
PARTIAL = "partial.jsonl"


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
    decoding = "greedy" if greedy else "sampled"
    asked = {"rollout": asdict(resolved), "tasks": tasks, "limit": limit, "samples": samples, "greedy": greedy}
    is_file = out.suffix in TRACE_SUFFIXES
    if is_file and out.is_dir():
        raise ConfigError(f"cannot write the file {out}: it is a directory; choose another name")
    run = RunDirectory(out.with_name(f"{out.name}.partial") if is_file else out)
    traces = out if is_file else run.evaluation(decoding)
    from deltah.tasks import read_tasks

    with claim(run.path):
        open_run(run.path, asked, command="rollout")
        job = _Job(resolved, read_tasks(Path(tasks))[:limit], samples=samples, greedy=greedy)
        if not (run.path / "result.json").exists():
            _roll_out(job, run.path / PARTIAL)
            _finish(run, traces, is_file=is_file)
    typer.echo(f"{count(job.total, 'trajectory')} in {traces}; next: deltah score {traces}")


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
            rest = self._sample(self.tasks[task : task + 1], self.samples - made, done)
            for k, trajectory in enumerate(rest, start=made):
                yield replace(trajectory, id=f"{self.tasks[task].id}/{k}")
            task += 1
        if task < len(self.tasks):
            yield from self._sample(self.tasks[task:], self.samples, task * self.samples)

    def _sample(self, tasks: Sequence[Task], samples: int, done: int) -> Iterator[Trajectory]:
        from deltah.engines.trl.rollout import rollout

        seed = self.config.seed
        if done:  # with the first seed, the next samples of a task would repeat its first ones
            seed = int(np.random.SeedSequence([seed, done]).generate_state(1)[0] >> 1)
        made = rollout(replace(self.config, seed=seed), tasks, greedy=self.greedy, samples=samples)
        return (trajectory for trajectory, _ in made)


def _roll_out(job: _Job, partial: Path) -> None:
    """Append the missing trajectories to the partial file."""
    from deltah.traces import TraceWriter

    done = _kept(partial, job)
    if done:
        typer.echo(f"continuing after {share(done, job.total, 'trajectory')} in {partial}")
    with reporting("rollout") as report:
        report(done, job.total, {})
        trajectories = job.after(done)
        first = list(islice(trajectories, 1))  # a run that cannot start leaves no file
        if not first:
            return
        with TraceWriter(partial) as writer:
            for number, trajectory in enumerate(chain(first, trajectories), start=done + 1):
                writer.write(trajectory)
                report(number, job.total, {})


def _finish(run: RunDirectory, traces: Path, *, is_file: bool) -> None:
    """Write the final file and remove the partial one; safe to repeat after an interruption."""
    from deltah.traces import read_traces, write_traces

    written = write_traces(traces, read_traces(run.path / PARTIAL))
    if is_file:
        shutil.rmtree(run.path)
        return
    run.finish({"trajectories": written}, total=written)
    (run.path / PARTIAL).unlink()


def _kept(partial: Path, job: _Job) -> int:
    """Number of trajectories that are already written."""
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

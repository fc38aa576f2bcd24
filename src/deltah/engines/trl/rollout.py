"""Rolling out without training: the trainer's own loop, masks and scoring pass, no gradient step.

`rollout` yields trajectories, `evaluate` writes those of held-out tasks, and a `RolloutJob` writes them as they come
and continues where it was interrupted.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, zip_longest
from pathlib import Path

import numpy as np
from datasets import Dataset

from deltah.core.rewards import RewardConfig
from deltah.core.signals import Signal, SignalConfig
from deltah.core.types import Trajectory
from deltah.engines.config import EvalConfig, EvaluateConfig, Progress, RolloutConfig
from deltah.engines.models import ModelFiles, load_model, on_gpu, resolve_model
from deltah.engines.rollout_row import graded_by, outcome_function, rows_of
from deltah.engines.trl.checkpoints import disk_faults
from deltah.engines.trl.grpo_config import check_vllm, generation_fields, make_grpo_config
from deltah.engines.trl.trainer import DeltaHTrainer
from deltah.engines.trl.trl_compat import alone
from deltah.errors import ConfigError
from deltah.runs import RunDirectory, claim, open_run
from deltah.tasks import Task, read_tasks
from deltah.tools import build_tools
from deltah.traces import TraceWriter, read_traces, write_traces


def rollout(
    config: RolloutConfig,
    tasks: Sequence[Task],
    *,
    files: ModelFiles | None = None,
    greedy: bool = False,
    samples: int = 1,
    batch_size: int = 64,
    signal: SignalConfig | None = None,
) -> Iterator[tuple[Trajectory, Signal]]:
    """Let a model act on tasks with its tools, without training; exact entropies by the trainer's own pass.

    Args:
        config: Model and limits.
        tasks: Questions.
        files: Model files, where already resolved.
        greedy: Take the likeliest token instead of sampling; entropies stay those at `config.temperature`.
        samples: Trajectories of each task.
        batch_size: Trajectories generated together.
        signal: How calls are scored.

    Yields:
        Graded (trajectory, signal), task by task.

    Raises:
        DeltahError: as `load_model` and the tools.
    """
    check_vllm(config)
    tasks = graded_by(tasks, config.grader)
    rows = rows_of(tasks, config.system_prompt)
    repeated = [{**row, "rollout_id": f"{row['task_id']}/{k}"} for row in rows for k in range(samples)]
    model, tokenizer = load_model(files or resolve_model(config.model), config)
    with tempfile.TemporaryDirectory() as scratch:  # the host wants a directory, though nothing is saved
        fields = generation_fields(config) | {
            "output_dir": scratch,
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": min(batch_size, 32),
            "num_generations": 2,
            "num_generations_eval": 1,
            "report_to": "none",
            "bf16": on_gpu(config),
            "disable_tqdm": True,
        }
        if greedy:
            fields["generation_kwargs"] = {**fields["generation_kwargs"], "do_sample": False}
        trainer = DeltaHTrainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=outcome_function(tasks),
            args=make_grpo_config(fields, {}),
            train_dataset=Dataset.from_list(rows[:1] * 2),
            tools=build_tools(config.tools, config.tool),
            reward=RewardConfig(name="outcome"),
            signal=signal,
        )
        for start in range(0, len(repeated), batch_size):
            yield from trainer.act(repeated[start : start + batch_size])


def evaluate(config: EvaluateConfig, out: Path, *, progress: Progress | None = None) -> RunDirectory:
    """Evaluate a model, sampled and greedy, into `eval/` of a run directory of its own.

    One process does it, also where `torchrun` started several: call it in the first.

    Raises:
        DeltahError: one sentence on what is wrong, before anything is generated wherever it can be known then.
    """
    run = RunDirectory(out)
    with claim(out), disk_faults(out), alone():
        check_vllm(config.rollout)
        check_evaluation(config.eval, config.rollout)
        resolve_model(config.rollout.model)
        open_run(out, config.to_dict(), command="eval")
        evaluate_into(config, run, progress)
        run.finish({}, total=2 * len(read_tasks(Path(config.eval.tasks))[: config.eval.limit]))
    return run


def check_evaluation(config: EvalConfig, rollout_config: RolloutConfig) -> None:
    """Read the tasks and build the tools of an evaluation, so that it cannot fail for them after a long training."""
    read_tasks(Path(config.tasks))
    build_tools(rollout_config.tools, _with_corpus(config, rollout_config).tool)


def _with_corpus(config: EvalConfig, rollout_config: RolloutConfig) -> RolloutConfig:
    """The rollout configuration with the evaluation's corpus, where it has one of its own."""
    corpus = config.corpus or rollout_config.tool.corpus
    return replace(rollout_config, tool=replace(rollout_config.tool, corpus=corpus))


def evaluate_into(config: EvaluateConfig, run: RunDirectory, progress: Progress | None = None) -> None:
    """Roll out held-out tasks; an evaluation that an earlier sitting wrote is kept."""
    tasks = read_tasks(Path(config.eval.tasks))[: config.eval.limit]
    rollout_config = _with_corpus(config.eval, config.rollout)
    for k, decoding in enumerate(("sampled", "greedy")):
        path = run.evaluation(decoding)
        if path.exists():
            continue
        done: list[Trajectory] = []
        for trajectory, _ in rollout(
            rollout_config, tasks, greedy=decoding == "greedy", batch_size=config.eval.batch_size, signal=config.signal
        ):
            done.append(trajectory)
            finished = k * len(tasks) + len(done)
            if len(done) % config.eval.batch_size == 0 or len(done) == len(tasks):
                run.set_status("evaluating", finished, 2 * len(tasks))
            if progress is not None:
                progress(finished, 2 * len(tasks), {})
        write_traces(path, done)


@dataclass(frozen=True, slots=True)
class RolloutJob:
    """Trajectories of tasks, written into a run directory as they come: all samples of the first task, then the next.

    A continued job samples with another seed, so that no draw is repeated: the sample is equally good, but another one.
    """

    config: RolloutConfig
    tasks: Sequence[Task]
    run: RunDirectory
    samples: int
    greedy: bool

    @property
    def total(self) -> int:
        """Trajectories to make."""
        return len(self.tasks) * self.samples

    @property
    def partial(self) -> Path:
        """File of the trajectories so far."""
        return self.run.path / "partial.jsonl"

    def kept(self) -> int:
        """Number of trajectories that are already written.

        Raises:
            ConfigError: if they answer other questions: the task file has changed since.
        """
        expected = ((f"{task.id}/{k}", task.question) for task in self.tasks for k in range(self.samples))
        written = read_traces(self.partial) if self.partial.exists() else ()
        kept = 0
        for trajectory, asked in zip_longest(written, expected):
            if trajectory is None:
                break
            if (trajectory.id, trajectory.question) != asked:
                raise ConfigError(
                    f"{self.partial}: trajectory {kept + 1} answers {trajectory.question!r} ({trajectory.id}), which "
                    "is not what the task file asks there now; give the task file it was made with, or another --out"
                )
            kept += 1
        return kept

    def proceed(self, done: int) -> Iterator[int]:
        """Write the trajectories after the first `done`; yields how many there are after each."""
        trajectories = self._after(done)
        first = list(islice(trajectories, 1))  # a run that cannot start leaves no file
        if first:
            with TraceWriter(self.partial) as writer:
                for number, trajectory in enumerate(chain(first, trajectories), start=done + 1):
                    writer.write(trajectory)
                    yield number

    def finish(self, traces: Path, *, remove_run: bool) -> None:
        """Write the final file, and remove the partial one or the whole run; safe to repeat after an interruption."""
        written = write_traces(traces, read_traces(self.partial))
        if remove_run:
            shutil.rmtree(self.run.path)
        else:
            self.run.finish({"trajectories": written}, total=written)
            self.partial.unlink()

    def _after(self, done: int) -> Iterator[Trajectory]:
        task, made = divmod(done, self.samples)
        if made:
            rest = self._sample(self.tasks[task : task + 1], self.samples - made, done)
            for k, trajectory in enumerate(rest, start=made):
                yield replace(trajectory, id=f"{self.tasks[task].id}/{k}")
            task += 1
        if task < len(self.tasks):
            yield from self._sample(self.tasks[task:], self.samples, task * self.samples)

    def _sample(self, tasks: Sequence[Task], samples: int, done: int) -> Iterator[Trajectory]:
        seed = self.config.seed
        if done:  # with the first seed, the next samples of a task would repeat its first ones
            seed = int(np.random.SeedSequence([seed, done]).generate_state(1)[0] >> 1)
        made = rollout(replace(self.config, seed=seed), tasks, greedy=self.greedy, samples=samples)
        return (trajectory for trajectory, _ in made)

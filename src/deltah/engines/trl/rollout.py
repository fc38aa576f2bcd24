"""Rollouts without training: the trainer's own loop, masks and scoring pass, without a gradient step."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
from datasets import Dataset

from deltah.core.rewards import RewardConfig
from deltah.core.signals import Signal, SignalConfig
from deltah.core.types import Trajectory
from deltah.engines.config import EvalConfig, EvaluateConfig, Progress, RolloutConfig
from deltah.engines.models import load_model, on_gpu, resolve_model
from deltah.engines.rollout_row import rows_of
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
    greedy: bool = False,
    samples: int = 1,
    start: int = 0,
    batch_size: int = 64,
    signal: SignalConfig | None = None,
) -> Iterator[tuple[Trajectory, Signal]]:
    """Graded (trajectory, signal), task by task, of a model with its tools, without the first `start` ones.

    Entropies are exact and those at `config.temperature`, also with `greedy`; `batch_size` trajectories are generated
    together.
    """
    check_vllm(config)
    rows, outcome = rows_of(tasks, config)
    repeated = [{**row, "rollout_id": f"{row['task_id']}/{k}"} for row in rows for k in range(samples)][start:]
    model, tokenizer = load_model(resolve_model(config.model), device=config.device)
    with tempfile.TemporaryDirectory() as scratch:  # TRL wants a directory, though nothing is saved
        fields = generation_fields(config) | {
            "output_dir": scratch,
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": min(batch_size, 32),
            "num_generations": 2,
            "num_generations_eval": 1,
            "report_to": "none",
            "bf16": on_gpu(config.device),
            "disable_tqdm": True,
        }
        if greedy:
            fields["generation_kwargs"] = {**fields["generation_kwargs"], "do_sample": False}
        trainer = DeltaHTrainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=outcome,
            args=make_grpo_config(fields, {}),
            train_dataset=Dataset.from_list(rows[:1] * 2),
            tools=build_tools(config.tools, config.tool),
            reward=RewardConfig(name="outcome"),
            signal=signal,
        )
        for i in range(0, len(repeated), batch_size):
            yield from trainer.act(repeated[i : i + batch_size])


def evaluate(config: EvaluateConfig, out: Path, *, progress: Progress | None = None) -> RunDirectory:
    """Evaluate a model, sampled and greedy, into `eval/` of a run directory of its own.

    Where `torchrun` started several processes, call it in the first.
    """
    run = RunDirectory(out)
    with claim(out), disk_faults(out), alone():
        check_vllm(config.rollout)
        tasks, acting = held_out(config.eval, config.rollout)
        build_tools(acting.tools, acting.tool)
        resolve_model(acting.model)
        open_run(out, config.to_dict(), command="eval")
        evaluate_into(config, run, progress)
        run.finish({}, total=2 * len(tasks))
    return run


def held_out(config: EvalConfig, rollout_config: RolloutConfig) -> tuple[list[Task], RolloutConfig]:
    """Tasks of an evaluation, and the rollout configuration with its corpus."""
    tool = replace(rollout_config.tool, corpus=config.corpus or rollout_config.tool.corpus)
    return read_tasks(Path(config.tasks))[: config.limit], replace(rollout_config, tool=tool)


def evaluate_into(config: EvaluateConfig, run: RunDirectory, progress: Progress | None = None) -> None:
    """Roll out held-out tasks; an evaluation that is already written is kept."""
    tasks, acting = held_out(config.eval, config.rollout)
    for k, decoding in enumerate(("sampled", "greedy")):
        path = run.evaluation(decoding)
        if path.exists():
            continue
        done: list[Trajectory] = []
        for trajectory, _ in rollout(
            acting, tasks, greedy=decoding == "greedy", batch_size=config.eval.batch_size, signal=config.signal
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
    """Trajectories of tasks, written into a run directory one by one: all samples of the first task, then the next."""

    config: RolloutConfig
    tasks: Sequence[Task]
    run: RunDirectory
    samples: int
    greedy: bool

    @property
    def total(self) -> int:
        """Number of trajectories to make."""
        return len(self.tasks) * self.samples

    @property
    def partial(self) -> Path:
        """File of the trajectories so far."""
        return self.run.path / "partial.jsonl"

    def kept(self) -> int:
        """Number of trajectories that are already written; a ConfigError if the task file has changed since."""
        expected = ((f"{task.id}/{k}", task.question) for task in self.tasks for k in range(self.samples))
        kept = 0
        for kept, trajectory in enumerate(read_traces(self.partial) if self.partial.exists() else (), start=1):
            if (trajectory.id, trajectory.question) != next(expected, None):
                raise ConfigError(
                    f"{self.partial}: trajectory {kept} answers {trajectory.question!r} ({trajectory.id}), which is "
                    "not what the task file asks there now; give the task file it was made with, or another --out"
                )
        return kept

    def proceed(self, done: int) -> Iterator[int]:
        """Write the trajectories after the first `done`; yields how many there are after each."""
        seed = self.config.seed
        if done:  # another seed, so that the next samples of a task do not repeat its first ones
            seed = int(np.random.SeedSequence([seed, done]).generate_state(1)[0] >> 1)
        acting = replace(self.config, seed=seed)
        made = rollout(acting, self.tasks, greedy=self.greedy, samples=self.samples, start=done)
        first = list(islice(made, 1)) if done < self.total else []  # a run that cannot start leaves no file
        if first:
            with TraceWriter(self.partial) as writer:
                for number, (trajectory, _) in enumerate(chain(first, made), start=done + 1):
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

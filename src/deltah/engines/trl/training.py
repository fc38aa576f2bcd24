"""A training run: preflight checks, trainer, resume, evaluation, all in one run directory.

Tasks, tools, packages, chat template and disk are checked before the first long step. Several processes (`torchrun`)
train together; the first owns the directory and evaluates alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from deltah.core.metrics import SECONDS
from deltah.core.signals import Signal
from deltah.core.types import Trajectory
from deltah.engines.config import EvaluateConfig, Progress, TrainConfig
from deltah.engines.models import load_model, resolve_model
from deltah.engines.rollout_row import rows_of
from deltah.engines.trl.checkpoints import RunTrainer, broken_numbers, disk_faults, drop_partial, last_complete, step_of
from deltah.engines.trl.grpo_config import (
    check_disk,
    check_trackers,
    check_vllm,
    grpo_config,
    lora_config,
    steps_per_rollout,
)
from deltah.engines.trl.rollout import evaluate_into, held_out
from deltah.engines.trl.trl_compat import alone, rank
from deltah.errors import ConfigError, TrainingError
from deltah.runs import MANIFEST, RunDirectory, claim, open_run
from deltah.tasks import read_tasks
from deltah.tools import build_tools
from deltah.traces import write_traces

FREE_KEYS = frozenset({"report_to"})
"""Configuration that may change when a run is continued."""


def train(
    config: TrainConfig, out: Path, *, progress: Progress | None = None, evaluation_progress: Progress | None = None
) -> RunDirectory:
    """Train, evaluate, and leave everything in the run directory `out`; continues a run that was interrupted.

    `progress` is called after every step, `evaluation_progress` after every held-out trajectory. Of several processes
    the first evaluates and the others return when the model is saved.
    """
    run, first = RunDirectory(out), rank() == 0
    with claim(out) if first else nullcontext(), disk_faults(out):
        if (out / MANIFEST).exists():  # refused under another configuration before anything is loaded
            open_run(out, config.to_dict(), command="train", free_keys=FREE_KEYS)
            if run.finished:
                return run
        steps = _fit(config, run, progress)
        with alone():
            if first and config.eval is not None:
                final = replace(config.rollout, model=str(run.model))
                evaluation = EvaluateConfig(rollout=final, eval=config.eval, signal=config.signal)
                evaluate_into(evaluation, run, evaluation_progress)
            if first:
                run.finish({"steps": steps, "seconds": training_seconds(run)}, total=steps)
    return run


def _fit(config: TrainConfig, run: RunDirectory, progress: Progress | None) -> int:
    """Train from the last whole checkpoint and save the model; returns the number of steps."""
    trainer = build_trainer(config, run, progress=progress)
    if rank() == 0:
        drop_partial(run.checkpoints)
    trainer.accelerator.wait_for_everyone()
    last = last_complete(run.checkpoints)
    if rank() == 0:
        run.forget_after(step_of(last))
    steps = trainer.args.max_steps
    if last is not None and step_of(last) >= steps:  # stopped between its last step and the end
        trainer.restore(last)
    else:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if trainer.state.global_step < steps:
        raise TrainingError(
            f"the trainer stopped after {trainer.state.global_step} of {steps} steps, so nothing is saved as finished; "
            "check the fields under [trainer] that end a training early"
        )
    trainer.save_final(run.model)
    return int(trainer.state.global_step)


def training_seconds(run: RunDirectory) -> float:
    """Wall time of all optimiser steps, generation included, evaluation not."""
    return sum(float(row.get("step_time") or 0.0) for row in run.read_metrics())


def build_trainer(config: TrainConfig, run: RunDirectory, *, progress: Progress | None = None) -> RunTrainer:
    """Check everything a run needs, then write its manifest and make its trainer."""
    rows, outcome = rows_of(read_tasks(Path(config.tasks)), config.rollout)
    files = resolve_model(config.rollout.model)
    tools = build_tools(config.rollout.tools, config.rollout.tool)
    if config.eval is not None:
        acting = held_out(config.eval, config.rollout)[1]
        build_tools(acting.tools, acting.tool)  # fails now, and not after a long training
    check_vllm(config.rollout)
    arguments, adapter = grpo_config(config, run), lora_config(config)
    check_trackers(arguments)
    needed = arguments.generation_batch_size // arguments.num_generations
    if len(rows) < needed:  # the trainer would drop the incomplete batch and train nothing
        raise ConfigError(
            f"{config.tasks} holds {len(rows)} tasks, fewer than the {needed} prompts of one step; add tasks, or lower "
            "prompts_per_step"
        )
    model, tokenizer = load_model(files, device=config.rollout.device, train_all=adapter is None)
    check_disk(run.path, model, arguments, adapter_only=adapter is not None)
    if rank() == 0:
        open_run(run.path, config.to_dict(), command="train", free_keys=FREE_KEYS)
    trainer = RunTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=outcome,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        tools=tools,
        peft_config=adapter,
        reward=config.reward,
        signal=config.signal,
        on_trajectories=_trace_writer(run, config.trace_every, steps_per_rollout(arguments)),
        callbacks=[_RunCallback(run, progress)],
    )
    trainer.remove_callback(PrinterCallback)  # deltah prints its own progress
    return trainer


def _trace_writer(run: RunDirectory, every: int, stride: int) -> Callable[..., None]:
    """Writer of the first batch, and of the first at or after each multiple of `every` steps, `stride` steps apart."""

    def write(trajectories: list[Trajectory], signals: list[Signal], step: int, mode: str) -> None:
        if mode == "train" and every and (step == 1 or step // every > (step - stride) // every):
            write_traces(run.step_traces(step, rank()), trajectories)

    return write


class _RunCallback(TrainerCallback):
    """Writes logged rows to the run directory, reports progress, and stops a run whose numbers broke."""

    def __init__(self, run: RunDirectory, progress: Progress | None) -> None:
        self._run, self._progress = run, progress
        self._latest: dict[str, float] = {}
        self._seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._seconds = training_seconds(self._run)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        row = {k: v for k, v in (logs or {}).items() if isinstance(v, int | float)}
        if "loss" not in row:  # the trainer's closing summary
            return
        broken = next((k for k in ("loss", "grad_norm") if k in row and not math.isfinite(row[k])), None)
        if broken is not None:  # before the step's checkpoint is written, and in every process
            raise broken_numbers(broken, state.global_step, self._run.checkpoints)
        if not state.is_world_process_zero:
            return
        self._latest |= row  # a further pass over a batch logs nothing of its trajectories: those before still hold
        self._seconds += row.get("step_time", 0.0)
        self._run.append_metrics({"step": state.global_step, SECONDS: self._seconds, **row})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self._run.set_status("training", state.global_step, state.max_steps)
        if self._progress is not None:
            self._progress(state.global_step, state.max_steps, self._latest)

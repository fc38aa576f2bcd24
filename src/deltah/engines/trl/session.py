"""A training run: preflight checks, trainer, resume, evaluation, all in one run directory.

Everything that can be known to be wrong is checked before the first long step: tasks, tools, chat template, disk.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from deltah.core.metrics import PREFIX, SECONDS
from deltah.core.scored import Signal
from deltah.core.types import Trajectory
from deltah.engines.models import resolve_model
from deltah.engines.trl.config import EvaluateConfig, Progress, TrainConfig
from deltah.errors import TrainingError, missing_dependency
from deltah.tasks import read_tasks
from deltah.tools import build_tools
from deltah.traces import write_traces
from deltah.traces.rundir import RunDirectory, open_run, write_atomic

try:
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint

    from deltah.engines.trl.acting import check_evaluation, evaluate_into
    from deltah.engines.trl.host import grpo_config, load_model, outcome_function, rows_of
    from deltah.engines.trl.trainer import DeltaHTrainer
except ImportError as error:  # pragma: no cover - exercised in an environment without the extra
    raise missing_dependency(error.name or "trl", extra="train", purpose="Training") from error

FREE_KEYS = frozenset({"report_to"})
"""Configuration that may change between the sittings of one run."""

_MIN_FREE_BYTES = 200 * 2**20


def train(config: TrainConfig, out: Path, *, progress: Progress | None = None) -> RunDirectory:
    """Train, evaluate, and leave everything in a run directory; continues where an earlier sitting stopped.

    Args:
        config: The run.
        out: Its directory.
        progress: Called after every step.

    Raises:
        DeltahError: one sentence on what is wrong, before training starts wherever it can be known then.
    """
    run = RunDirectory(out)
    if (out / "run.json").exists():  # refused under another configuration before anything is loaded
        open_run(out, config.to_dict(), command="train", free_keys=FREE_KEYS)
        if (out / "result.json").exists():
            return run
    trainer = build_trainer(config, run, progress=progress)
    last = get_last_checkpoint(str(run.checkpoints)) if run.checkpoints.is_dir() else None
    run.forget_after(_step_of(last))
    _train_guarded(trainer, last)
    trainer.save_model(str(run.model))
    trainer.processing_class.save_pretrained(str(run.model))
    if config.eval is not None:
        final = replace(config.rollout, model=str(run.model))
        evaluate_into(EvaluateConfig(rollout=final, eval=config.eval, signal=config.signal), run)
    result = {"steps": trainer.state.global_step, "seconds": training_seconds(run)}
    write_atomic(run.path / "result.json", json.dumps(result) + "\n")
    return run


def training_seconds(run: RunDirectory) -> float:
    """Wall time of the optimiser steps of all sittings, generation included, evaluation not."""
    return sum(float(row.get("step_time") or 0.0) for row in run.read_metrics())


def _step_of(checkpoint: str | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.rsplit("-", 1)[1])


def _train_guarded(trainer: DeltaHTrainer, checkpoint: str | None) -> None:
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except OSError as error:
        if error.errno in (28, 122):  # no space left, quota exceeded
            raise TrainingError(
                "no space left on the disk; free some and run the same command again: it continues from the last "
                "checkpoint"
            ) from error
        raise


def build_trainer(config: TrainConfig, run: RunDirectory, *, progress: Progress | None = None) -> DeltaHTrainer:
    """Check everything a run needs, then make its directory and its trainer: a run that cannot start leaves nothing.

    Raises:
        DeltahError: if tasks, tools, model, template, host configuration or disk cannot do what the run needs.
    """
    tasks = read_tasks(Path(config.tasks))
    files = resolve_model(config.rollout.model)
    tools = build_tools(config.rollout.tools, config.rollout.tool)
    if config.eval is not None:
        check_evaluation(config.eval, config.rollout)
    model, tokenizer = load_model(files, config.rollout)
    _check_disk(run.path, sum(p.numel() for p in model.parameters()) * 16)
    arguments, adapter = grpo_config(config, run), _lora(config)
    open_run(run.path, config.to_dict(), command="train", free_keys=FREE_KEYS)
    trainer = DeltaHTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=outcome_function(tasks),
        args=arguments,
        train_dataset=Dataset.from_list(rows_of(tasks, config.rollout.system_prompt)),
        tools=tools,
        peft_config=adapter,
        reward=config.reward,
        signal=config.signal,
        on_trajectories=_trace_writer(run, config.trace_every),
        callbacks=[_RunCallback(run, config.steps, progress)],
    )
    _quiet(trainer)
    return trainer


def _lora(config: TrainConfig) -> Any:
    if not config.lora_rank:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise missing_dependency("peft", extra="train", purpose="lora_rank") from error
    return LoraConfig(r=config.lora_rank, lora_alpha=2 * config.lora_rank, task_type="CAUSAL_LM")


def _check_disk(path: Path, needed: int) -> None:
    """Refuse to start on a disk that cannot hold two checkpoints."""
    existing = next(folder for folder in (path, *path.resolve().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    wanted = max(2 * needed, _MIN_FREE_BYTES)
    if free < wanted:
        raise TrainingError(
            f"{path} has {free / 2**20:.0f} MiB free; the run needs about {wanted / 2**20:.0f} MiB for its checkpoints"
        )


def _trace_writer(run: RunDirectory, every: int) -> Callable[[list[Trajectory], list[Signal], int, str], None] | None:
    if not every:
        return None

    def write(trajectories: list[Trajectory], signals: list[Signal], step: int, mode: str) -> None:
        del signals
        if mode == "train" and (step == 1 or step % every == 0):
            write_traces(run.step_traces(step, int(os.environ.get("RANK", "0"))), trajectories)

    return write


def _quiet(trainer: DeltaHTrainer) -> None:
    """Our own progress and metrics replace the host's printing."""
    trainer.remove_callback(PrinterCallback)


class _RunCallback(TrainerCallback):
    """Writes logged rows to the run directory, reports progress, and stops a run whose numbers broke."""

    def __init__(self, run: RunDirectory, steps: int, progress: Progress | None) -> None:
        self._run, self._steps, self._progress = run, steps, progress
        self._latest: dict[str, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        row = {k: v for k, v in (logs or {}).items() if isinstance(v, int | float)}
        if not state.is_world_process_zero or not any(key.startswith(PREFIX) for key in row):
            return
        broken = next((k for k in ("loss", "grad_norm") if k in row and not math.isfinite(row[k])), None)
        if broken is not None:
            raise TrainingError(
                f"{broken} is not a finite number at step {state.global_step}; lower learning_rate, or set "
                f"trainer.max_grad_norm; the last good checkpoint is in {self._run.checkpoints}"
            )
        self._latest = row
        seconds = training_seconds(self._run) + row.get("step_time", 0.0)
        self._run.append_metrics({"step": state.global_step, SECONDS: seconds, **row})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self._run.set_status("training", state.global_step, self._steps)
        if self._progress is not None:
            self._progress(state.global_step, self._steps, self._latest)

"""TRL's configuration of a run, and what can be known to be wrong with it before the first long step."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers.integrations import get_reporting_integration_callbacks
from trl import GRPOConfig

from deltah.engines.config import RolloutConfig, TrainConfig
from deltah.engines.models import on_gpu
from deltah.engines.trl.trl_compat import unsupported, world_size
from deltah.errors import ConfigError, MissingDependencyError, TrainingError, missing_dependency
from deltah.runs import RunDirectory

MIN_FREE_BYTES = 200 * 2**20


def grpo_config(config: TrainConfig, run: RunDirectory) -> GRPOConfig:
    """TRL's configuration of a training run; a step has the same rows however many processes share them."""
    rows, at_once = config.prompts_per_step * config.generations, config.rollout.batch_size * world_size()
    if rows % at_once:
        raise ConfigError(
            f"{config.prompts_per_step} prompts x {config.generations} generations = {rows} rows per step is not a "
            f"multiple of {world_size()} processes x rollout.batch_size {config.rollout.batch_size}; change one of them"
        )
    gpu = on_gpu(config.rollout.device)
    fields: dict[str, Any] = {
        "output_dir": str(run.checkpoints),
        "max_steps": config.steps,
        "per_device_train_batch_size": config.rollout.batch_size,
        "gradient_accumulation_steps": rows // at_once,
        "num_generations": config.generations,
        "num_iterations": config.num_iterations,
        "learning_rate": config.learning_rate,
        "warmup_steps": config.warmup_steps,
        "lr_scheduler_type": "constant_with_warmup",
        "beta": config.beta,
        "scale_rewards": "group" if config.reward.scale else "none",
        "save_steps": config.save_every,
        "save_total_limit": 2,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a loss that is not a number must be seen
        "report_to": list(config.report_to) or "none",
        "gradient_checkpointing": gpu,
        "bf16": gpu,
        "disable_tqdm": True,
        "log_completions": False,
        **generation_fields(config.rollout),
    }
    arguments = make_grpo_config(fields, config.trainer)
    every, steps = steps_per_rollout(arguments), int(arguments.save_steps)
    if arguments.save_strategy == "steps" and steps % every:  # the trajectories between two passes are not saved
        raise ConfigError(
            f"save_every {steps} is not a multiple of the {every} steps that train on one batch of trajectories "
            f"(num_iterations); a run can resume only between batches: set save_every to {-(-steps // every) * every}"
        )
    return arguments


def steps_per_rollout(arguments: GRPOConfig) -> int:
    """Optimiser steps that train on one batch of trajectories."""
    micro_steps = arguments.steps_per_generation * arguments.num_iterations
    return max(1, int(micro_steps // arguments.gradient_accumulation_steps))


def generation_fields(config: RolloutConfig) -> dict[str, Any]:
    """Fields of `GRPOConfig` for generation."""
    turn = config.max_turn_tokens
    return {
        "temperature": config.temperature,
        "max_completion_length": config.max_completion_length,
        "max_tool_calling_iterations": config.max_rounds,
        "generation_kwargs": {} if turn is None else {"max_tokens" if config.vllm else "max_new_tokens": turn},
        "use_vllm": config.vllm,
        "use_cpu": not on_gpu(config.device),
        "seed": config.seed,
        "top_k": 0,
    }


def make_grpo_config(fields: dict[str, Any], overrides: dict[str, Any]) -> GRPOConfig:
    """TRL's configuration of deltah's fields and the user's."""
    known = GRPOConfig.__dataclass_fields__.keys()
    if gone := sorted(fields.keys() - known):
        raise unsupported(f"GRPOConfig no longer has {', '.join(gone)}")
    if unknown := sorted(overrides.keys() - known):
        raise ConfigError(f"trainer.{unknown[0]} is not a field of TRL's GRPOConfig")
    try:
        return GRPOConfig(**{**fields, **overrides})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"TRL refuses this configuration: {error}") from error


def check_vllm(config: RolloutConfig) -> None:
    """Refuse `vllm` without its package or a GPU."""
    if config.vllm and find_spec("vllm") is None:
        raise MissingDependencyError(
            "rollout.vllm needs the package 'vllm' in a version that TRL supports; install it with: pip install "
            "vllm, or leave rollout.vllm out to generate with transformers"
        )
    if config.vllm and not on_gpu(config.device):
        raise ConfigError("rollout.vllm needs a GPU and none is in use; leave it out to generate with transformers")


def check_trackers(arguments: GRPOConfig) -> None:
    """Make each tracker of `report_to` once, as the trainer will: unknown names and missing packages show."""
    try:
        trackers = get_reporting_integration_callbacks(arguments.report_to)
    except ValueError as error:
        raise ConfigError(f"report_to: {error}") from error
    for name, tracker in zip(arguments.report_to, trackers, strict=True):
        try:
            tracker()
        except (RuntimeError, ImportError) as error:
            raise MissingDependencyError(
                f"report_to names {name!r}, whose package is not installed; install it with: pip install {name}, or "
                "leave it out"
            ) from error


def lora_config(config: TrainConfig) -> Any:
    """PEFT's configuration of the adapter, or None where all weights are trained."""
    if not config.lora_rank:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise missing_dependency("peft", extra="train", purpose="lora_rank") from error
    return LoraConfig(r=config.lora_rank, lora_alpha=2 * config.lora_rank, task_type="CAUSAL_LM")


def check_disk(path: Path, model: Any, arguments: GRPOConfig, *, adapter_only: bool = False) -> None:
    """Refuse a disk that cannot hold the checkpoints kept, the one being written, and the final model.

    The run's own checkpoints count as free; those of a LoRA adapter alone (`adapter_only`) are negligible.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    moments = 2 * 4 * sum(p.numel() for p in model.parameters())  # in float32
    checkpoint = 0 if adapter_only else weights + moments
    needed = max(((arguments.save_total_limit or 1) + 1) * checkpoint + weights, MIN_FREE_BYTES)
    existing = next(folder for folder in (path, *path.resolve().parents) if folder.exists())
    own = sum(file.stat().st_size for file in Path(arguments.output_dir).rglob("*") if file.is_file())
    free = shutil.disk_usage(existing).free
    if free + own < needed:
        raise TrainingError(
            f"{path} has {free / 2**20:.0f} MiB free; the run needs about {(needed - own) / 2**20:.0f} MiB more for "
            "its checkpoints and model; free some, or choose another --out"
        )

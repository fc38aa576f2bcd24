"""What can be known to be wrong before the first long step: packages, trackers, number of tasks, disk."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers.integrations import get_reporting_integration_callbacks
from trl import GRPOConfig

from deltah.engines.trl.config import RolloutConfig, TrainConfig
from deltah.engines.trl.host import on_gpu
from deltah.errors import ConfigError, MissingDependencyError, TrainingError, missing_dependency

MIN_FREE_BYTES = 200 * 2**20
_ADAM_BYTES = 8
"""Two float32 moments for each trained weight."""


def check_vllm(config: RolloutConfig) -> None:
    """Refuse `vllm` where it cannot run.

    Raises:
        MissingDependencyError: if the package is not installed.
        ConfigError: if there is no GPU.
    """
    if not config.vllm:
        return
    if find_spec("vllm") is None:
        raise MissingDependencyError(
            "rollout.vllm needs the package 'vllm' in a version that TRL supports; install it with: pip install "
            "vllm, or leave rollout.vllm out to generate with transformers"
        )
    if not on_gpu(config):
        raise ConfigError("rollout.vllm needs a GPU and none is in use; leave it out to generate with transformers")


def check_trackers(arguments: GRPOConfig) -> None:
    """Make each tracker of `report_to` once, as the host will.

    Raises:
        ConfigError: if one has a name the host does not know.
        MissingDependencyError: if the package of one is not installed.
    """
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


def check_enough_tasks(config: TrainConfig, arguments: GRPOConfig, n_tasks: int) -> None:
    """Refuse fewer tasks than one step asks: the host would drop the incomplete batch and train nothing.

    Raises:
        ConfigError: saying how many are there and how many are needed.
    """
    needed = arguments.generation_batch_size // arguments.num_generations
    if n_tasks < needed:
        raise ConfigError(
            f"{config.tasks} holds {n_tasks} tasks, fewer than the {needed} prompts of one step; add tasks, or lower "
            "prompts_per_step"
        )


def lora_config(config: TrainConfig) -> Any:
    """PEFT's configuration of the adapter, or None where all weights are trained.

    Raises:
        MissingDependencyError: if PEFT is not installed.
    """
    if not config.lora_rank:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise missing_dependency("peft", extra="train", purpose="lora_rank") from error
    return LoraConfig(r=config.lora_rank, lora_alpha=2 * config.lora_rank, task_type="CAUSAL_LM")


def check_disk(path: Path, model: Any, arguments: GRPOConfig, *, adapter_only: bool = False) -> None:
    """Refuse a disk that cannot hold the checkpoints kept, the one being written, and the final model.

    What the run's own checkpoints take already counts as free: they make room for the next ones.

    Args:
        path: The run directory.
        model: Before an adapter is added.
        arguments: Where checkpoints go and how many are kept.
        adapter_only: Checkpoints hold a LoRA adapter, whose size is nothing beside the model's.

    Raises:
        TrainingError: with what is free and what is needed.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    checkpoint = 0 if adapter_only else weights + _ADAM_BYTES * sum(p.numel() for p in model.parameters())
    needed = max(((arguments.save_total_limit or 1) + 1) * checkpoint + weights, MIN_FREE_BYTES)
    existing = next(folder for folder in (path, *path.resolve().parents) if folder.exists())
    own = sum(file.stat().st_size for file in Path(arguments.output_dir).rglob("*") if file.is_file())
    free = shutil.disk_usage(existing).free
    if free + own < needed:
        raise TrainingError(
            f"{path} has {free / 2**20:.0f} MiB free; the run needs about {(needed - own) / 2**20:.0f} MiB more for "
            "its checkpoints and model; free some, or choose another --out"
        )

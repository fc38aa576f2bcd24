"""From configuration to TRL's own objects: model and tokenizer, dataset rows, the outcome function, `GRPOConfig`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from deltah.engines.models import ModelFiles, unloadable
from deltah.engines.templates import check_chat_template
from deltah.engines.trl.config import RolloutConfig, TrainConfig
from deltah.engines.trl.contract import unsupported
from deltah.engines.trl.processes import world_size
from deltah.engines.trl.records import last_text
from deltah.errors import ConfigError, DataError
from deltah.runs.directory import RunDirectory
from deltah.tasks import OUTCOME_GRADER, Task, grade


def load_model(files: ModelFiles, config: RolloutConfig, *, train_all: bool = False) -> tuple[Any, Any]:
    """Load model and tokenizer and check the chat template, before any long work.

    Args:
        files: Where they lie; an adapter is merged into its base model.
        config: Says where the model runs.
        train_all: Whether all weights are to be trained.

    Raises:
        ModelError: if the files do not load, or naming what the template cannot do; with the remedy.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(files.tokenizer)
    except Exception as error:  # the hosts raise whatever their readers of a dozen formats do
        raise unloadable("tokenizer", files, error) from error
    check_chat_template(tokenizer, files.name)
    try:
        model = _load_weights(files, model_dtype(config, train_all=train_all))
    except Exception as error:
        raise unloadable("model", files, error) from error
    return model, tokenizer


def model_dtype(config: RolloutConfig, *, train_all: bool) -> torch.dtype:
    """Type of the weights: bfloat16 on a GPU, unless the optimiser changes all of them.

    An AdamW step of 1e-6 is below half of bfloat16's spacing for nearly every weight and would be rounded away, so
    trained weights are float32 (the host computes in bfloat16 by autocast). A LoRA adapter is float32 in any case.
    """
    return torch.bfloat16 if on_gpu(config) and not train_all else torch.float32


def _load_weights(files: ModelFiles, dtype: torch.dtype) -> Any:
    if files.base is None:
        return AutoModelForCausalLM.from_pretrained(files.path, dtype=dtype)
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(files.base, dtype=dtype)
    return PeftModel.from_pretrained(base, files.path).merge_and_unload()


def rows_of(tasks: Sequence[Task], system_prompt: str) -> list[dict[str, Any]]:
    """Dataset rows of tasks: the prompt and what a trajectory records of its task."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [
        {
            "prompt": [*system, {"role": "user", "content": task.question}],
            "task_id": task.id,
            "question": task.question,
            "golden_answers": list(task.golden_answers),
            "facts": json.dumps({**task.metadata, OUTCOME_GRADER: task.kind}),
        }
        for task in tasks
    ]


def outcome_function(tasks: Sequence[Task]) -> Callable[..., list[float]]:
    """The reward function `outcome`: each completion's last message, graded against its task."""
    by_id = {task.id: task for task in tasks}
    if len(by_id) != len(tasks):
        raise DataError("two tasks share an id; give each its own 'id'")

    def outcome(completions: list[Any], task_id: list[str], **columns: Any) -> list[float]:
        del columns
        pairs = zip(completions, task_id, strict=True)
        return [grade(by_id[key], last_text(completion)).score for completion, key in pairs]

    return outcome


def grpo_config(config: TrainConfig, run: RunDirectory) -> GRPOConfig:
    """TRL's configuration of a training run; a step has the same rows however many processes share them.

    Raises:
        ConfigError: if the processes cannot share a step's rows evenly, or TRL refuses a field.
    """
    rows, at_once = config.prompts_per_step * config.generations, config.rollout.batch_size * world_size()
    if rows % at_once:
        raise ConfigError(
            f"{config.prompts_per_step} prompts x {config.generations} generations = {rows} rows a step is not a "
            f"multiple of {world_size()} processes x rollout.batch_size {config.rollout.batch_size}; change one of them"
        )
    gpu = on_gpu(config.rollout)
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
    _check_saves(arguments)
    return arguments


def steps_per_rollout(arguments: GRPOConfig) -> int:
    """Optimiser steps that train on one batch of trajectories."""
    micro_steps = arguments.steps_per_generation * arguments.num_iterations
    return max(1, int(micro_steps // arguments.gradient_accumulation_steps))


def _check_saves(arguments: GRPOConfig) -> None:
    """Refuse checkpoints between two passes over a batch: its trajectories are not saved, so resuming would differ."""
    every, steps = steps_per_rollout(arguments), int(arguments.save_steps)
    if arguments.save_strategy == "steps" and steps % every:
        raise ConfigError(
            f"save_every {steps} is not a multiple of the {every} steps that train on one batch of trajectories "
            f"(num_iterations); a run can resume only between batches: set save_every to {-(-steps // every) * every}"
        )


def generation_fields(config: RolloutConfig) -> dict[str, Any]:
    """Fields of `GRPOConfig` that say how a model acts."""
    turn = config.max_turn_tokens
    return {
        "temperature": config.temperature,
        "max_completion_length": config.max_completion_length,
        "max_tool_calling_iterations": config.max_rounds,
        "generation_kwargs": {} if turn is None else {"max_tokens" if config.vllm else "max_new_tokens": turn},
        "use_vllm": config.vllm,
        "use_cpu": not on_gpu(config),
        "seed": config.seed,
        "top_k": 0,
    }


def make_grpo_config(fields: dict[str, Any], overrides: dict[str, Any]) -> GRPOConfig:
    """Build TRL's config; a wrong extra field becomes one sentence.

    Raises:
        ConfigError: if TRL does not know a field of the user's, or refuses a value.
        UnsupportedVersionError: if it no longer knows one of ours.
    """
    known = GRPOConfig.__dataclass_fields__
    gone = sorted(set(fields) - set(known))
    if gone:
        raise unsupported(f"GRPOConfig no longer has {', '.join(gone)}")
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise ConfigError(f"trainer.{unknown[0]} is not a field of TRL's GRPOConfig")
    try:
        return GRPOConfig(**{**fields, **overrides})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"TRL refuses this configuration: {error}") from error


def on_gpu(config: RolloutConfig) -> bool:
    """Whether the model goes to a GPU."""
    return config.device == "auto" and torch.cuda.is_available()

"""From configuration to TRL's own objects: model and tokenizer, dataset rows, the outcome function, `GRPOConfig`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from deltah.engines.models import ModelFiles
from deltah.engines.templates import check_chat_template
from deltah.engines.trl.config import RolloutConfig, TrainConfig
from deltah.engines.trl.records import last_text
from deltah.errors import ConfigError, DataError
from deltah.tasks import Task, grade
from deltah.traces.rundir import RunDirectory


def load_model(files: ModelFiles, config: RolloutConfig) -> tuple[Any, Any]:
    """Load model and tokenizer and check the chat template, before any long work.

    Raises:
        ModelError: naming what the template cannot do and the remedy.
    """
    tokenizer = AutoTokenizer.from_pretrained(files.path)
    check_chat_template(tokenizer, files.name)
    dtype = torch.bfloat16 if on_gpu(config) else torch.float32
    return AutoModelForCausalLM.from_pretrained(files.path, dtype=dtype), tokenizer


def rows_of(tasks: Sequence[Task], system_prompt: str) -> list[dict[str, Any]]:
    """Dataset rows of tasks: the prompt and what a trajectory records of its task."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [
        {
            "prompt": [*system, {"role": "user", "content": task.question}],
            "task_id": task.id,
            "question": task.question,
            "golden_answers": list(task.golden_answers),
            "facts": json.dumps(dict(task.metadata)),
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
        return [float(grade(by_id[key], last_text(completion)).score) for completion, key in pairs]

    return outcome


def grpo_config(config: TrainConfig, run: RunDirectory) -> GRPOConfig:
    """TRL's configuration of a training run."""
    rows = config.prompts_per_step * config.generations
    gpu = on_gpu(config.rollout)
    fields: dict[str, Any] = {
        "output_dir": str(run.checkpoints),
        "logging_dir": str(run.path / "tracker"),
        "max_steps": config.steps,
        "per_device_train_batch_size": config.rollout.batch_size,
        "gradient_accumulation_steps": rows // config.rollout.batch_size,
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
        "report_to": list(config.report_to) or "none",
        "gradient_checkpointing": gpu,
        "bf16": gpu,
        "disable_tqdm": True,
        "log_completions": False,
        **generation_fields(config.rollout),
    }
    return make_grpo_config(fields, config.trainer)


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
        ConfigError: if TRL does not know a field, or refuses a value.
    """
    known = GRPOConfig.__dataclass_fields__
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise ConfigError(f"trainer.{unknown[0]} is not a field of TRL's GRPOConfig")
    fields = {key: value for key, value in {**fields, **overrides}.items() if key in known}
    try:
        return GRPOConfig(**fields)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"TRL refuses this configuration: {error}") from error


def on_gpu(config: RolloutConfig) -> bool:
    """Whether the model goes to a GPU."""
    return config.device == "auto" and torch.cuda.is_available()

"""A tiny random model with the lab's tokenizer, stock tools, and generation that follows a script.

Only the sampler is scripted: chat template, parsing, tool loop, masks, scoring passes and losses are TRL's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig

from deltah.engines.trl.trainer import DeltaHTrainer
from deltah.lab import checkpoint_path

Script = Sequence[str]
"""Text of each assistant message of one row, end-of-turn token included where it ends."""


def search(query: str) -> str:
    """Search the corpus.

    Args:
        query: What to look for.
    """
    if "boom" in query:
        raise RuntimeError("boom")
    return f" Port {query.strip()}"


def call(query: str, name: str = "search", argument: str = "query") -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {{"{argument}": "{query}"}}}}</tool_call>'


def tiny_model(seed: int = 0) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config), tokenizer


def outcome(completions: list[Any], **columns: Any) -> list[float]:
    """1 if the last message contains Yes, 0.5 if it contains maybe."""
    texts = [str(c[-1].get("content") or "") if c[-1]["role"] == "assistant" else "" for c in completions]
    return [1.0 if "Yes" in t else 0.5 if "maybe" in t else 0.0 for t in texts]


def make_trainer(
    tmp_path: Path, scripts: Sequence[Script] | None, *, trainer_class: type = DeltaHTrainer, **options: Any
) -> Any:
    """Trainer over one prompt with as many generations as there are scripts (4 without scripts)."""
    size = 4 if scripts is None else len(scripts)
    grpo = {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": size,
        "num_generations": size,
        "max_completion_length": 128,
        "max_steps": 1,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 3,
        **options.pop("grpo", {}),
    }
    model, tokenizer = options.pop("model", None) or tiny_model()
    if grpo.get("beta") and "peft_config" not in options:  # TRL loads the reference policy from the model's path
        model.save_pretrained(tmp_path / "start")
        model = LlamaForCausalLM.from_pretrained(tmp_path / "start")
    rows = [{"prompt": [{"role": "user", "content": "Where is it ?"}], "task_id": "q", "question": "Where is it ?"}] * 8
    trainer = trainer_class(
        model=model,
        processing_class=tokenizer,
        reward_funcs=options.pop("reward_funcs", outcome),
        args=GRPOConfig(**grpo),
        train_dataset=Dataset.from_list(rows),
        tools=options.pop("tools", [search]),
        **options,
    )
    if scripts is not None:
        trainer._generate_single_turn = Sampler(tokenizer, scripts)
    return trainer


class Sampler:
    """Stands for the sampler: gives each row the next message of its script, found by the ids it continues."""

    def __init__(self, tokenizer: Any, scripts: Sequence[Script]) -> None:
        self.tokenizer, self.scripts = tokenizer, scripts
        self.histories: list[list[int]] = []
        self.position: list[int] = []

    def __call__(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> tuple[list[list[int]], None]:
        if len(prompt_ids) == len(self.scripts) and len({len(p) for p in prompt_ids}) == 1 and self._fresh(prompt_ids):
            self.histories, self.position = [[] for _ in self.scripts], [0] * len(self.scripts)
            rows = list(range(len(self.scripts)))
        else:
            rows = [next(i for i, h in enumerate(self.histories) if h == ids[: len(h)]) for ids in prompt_ids]
        return [self._next(row, ids) for row, ids in zip(rows, prompt_ids, strict=True)], None

    def _fresh(self, prompt_ids: list[list[int]]) -> bool:
        return not self.histories or len(prompt_ids[0]) < min(map(len, self.histories))

    def _next(self, row: int, ids: list[int]) -> list[int]:
        message = self.scripts[row][self.position[row]]
        self.position[row] += 1
        new = self.tokenizer(message, add_special_tokens=False)["input_ids"]
        self.histories[row] = [*ids, *new]
        return new

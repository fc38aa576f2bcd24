"""Files and configuration of small training runs: a tiny random model, tasks it hits in part, a corpus."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from engines.trl_fixtures import tiny_model
from safetensors.torch import load_file

from deltah import RewardConfig
from deltah.engines.config import Progress, RolloutConfig, TrainConfig
from deltah.tools import ToolConfig


def write_files(path: Path) -> Path:
    """A tiny model, tasks whose long answers a random model hits in part, and a corpus."""
    model, tokenizer = tiny_model()
    model.save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    words = sorted(word.strip() for word in tokenizer.get_vocab() if word.strip().isalpha())
    answers = [" ".join(words[i::3]) for i in range(3)]
    tasks = [{"id": f"t{i}", "question": f"What is {i} times 7?", "answer": answers[i % 3]} for i in range(16)]
    (path / "tasks.jsonl").write_text("".join(json.dumps(t) + "\n" for t in tasks))
    (path / "corpus.jsonl").write_text('{"id": "1", "contents": "Port Anselm is a city."}\n')
    return path


def make_config(files: Path, **fields: object) -> TrainConfig:
    rollout_config = RolloutConfig(
        model=str(files / "model"),
        tool=ToolConfig(corpus=str(files / "corpus.jsonl")),
        max_completion_length=16,
        batch_size=8,
        device="cpu",
    )
    defaults: dict[str, object] = {
        "tasks": str(files / "tasks.jsonl"),
        "rollout": rollout_config,
        "reward": RewardConfig(name="dense"),
        "steps": 4,
        "prompts_per_step": 2,
        "generations": 4,
        "learning_rate": 1e-2,
        "save_every": 2,
        "trace_every": 1,
    }
    return TrainConfig(**{**defaults, **fields})


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class Stop(Exception):
    """Stands for a killed process."""


def stop_at(step: int) -> Progress:
    def progress(done: int, total: int, row: dict[str, float]) -> None:
        if done == step:
            raise Stop

    return progress


@contextmanager
def stopped() -> Iterator[None]:
    with pytest.raises(Stop):
        yield

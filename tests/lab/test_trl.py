"""TRL's stock GRPOTrainer trains the shipped checkpoint with the shipped tools, with nothing patched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltah.lab import checkpoint_path
from deltah.lab.questions import questions
from deltah.lab.world import Split, World
from deltah.tasks.graders import grade
from deltah.tools.python import make_python
from deltah.tools.search import SearchIndex, make_search

pytest.importorskip("trl")


@pytest.mark.slow
def test_stock_grpo_runs_on_the_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    world = World(0, Split.TRAIN)
    tasks = {q.task.question: q.task for q in questions(world, 16, seed=0)}

    def reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        return [
            grade(tasks[p[0]["content"]], c[-1]["content"]).score for p, c in zip(prompts, completions, strict=True)
        ]

    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(checkpoint_path()),
        processing_class=AutoTokenizer.from_pretrained(checkpoint_path()),
        reward_funcs=reward,
        tools=[make_search(SearchIndex(world.documents), top_k=2), make_python()],
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in tasks]),
        args=GRPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=16,
            num_generations=4,
            max_completion_length=400,
            generation_kwargs={"max_new_tokens": 64},
            max_steps=2,
            learning_rate=5e-4,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "tools/call_frequency" in entry]
    assert len(logged) == 2
    assert all(entry["tools/call_frequency"] > 1.0 and entry["tools/failure_frequency"] < 0.1 for entry in logged)
    assert any(entry["reward"] > 0.1 for entry in logged)

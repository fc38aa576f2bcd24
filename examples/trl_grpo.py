"""GRPO in TRL with a reward per call: stock `GRPOTrainer(tools=...)`, two more arguments.

    python examples/trl_grpo.py        # two steps of the embedded agent, half a minute on two CPU cores

Needs `pip install 'deltah[train]'`. For a model of your own replace MODEL and the tasks, and see docs/training.md.
"""

import tempfile
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from deltah import RewardConfig, SignalConfig
from deltah.engines.trl.trainer import DeltaHTrainer
from deltah.lab import checkpoint_path
from deltah.tasks import grade, read_tasks
from deltah.tools import ToolConfig, build_tools

MODEL = checkpoint_path()
LAB = Path(__file__).parent / "lab"
TASKS = {task.question: task for task in read_tasks(LAB / "tasks.jsonl")}


def outcome(completions: list, question: list[str], **columns: object) -> list[float]:
    """F1 of each final message, in [0, 1]: the outcome that entropy shapes."""
    return [grade(TASKS[q], c[-1].get("content") or "").score for q, c in zip(question, completions, strict=True)]


def main() -> None:
    """Train two steps and print what the trainer measured."""
    rows = [{"prompt": [{"role": "user", "content": question}], "question": question} for question in TASKS]
    with tempfile.TemporaryDirectory() as folder:
        trainer = DeltaHTrainer(
            model=AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32"),
            processing_class=AutoTokenizer.from_pretrained(MODEL),
            args=GRPOConfig(
                output_dir=folder,
                max_steps=2,
                per_device_train_batch_size=16,
                num_generations=8,
                max_completion_length=256,
                learning_rate=1e-4,
                use_cpu=True,
                bf16=False,
                logging_steps=1,
                report_to="none",
                save_strategy="no",
            ),
            train_dataset=Dataset.from_list(rows),
            tools=build_tools(["search", "python"], ToolConfig(corpus=str(LAB / "corpus.jsonl"))),
            reward_funcs=outcome,
            reward=RewardConfig("dense", alpha=0.5),  # or "sparse", or one of your own
            signal=SignalConfig(margin=0.02),
        )
        trainer.train()
        for row in trainer.state.log_history[:2]:
            print({key: value for key, value in row.items() if key.startswith("deltah/")})


if __name__ == "__main__":
    main()

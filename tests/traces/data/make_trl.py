"""Record `trl.parquet` and `trl_text.parquet` with the stock GRPOTrainer of TRL: tool calls, and plain text.

Run from the root of the repository: PYTHONPATH=src:tests:tests/engines python tests/traces/data/make_trl.py
The sampler follows a script; parsing, the tool loop, the rewards and the writer are TRL's own.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import GRPOTrainer
from trl_fixtures import call, make_trainer, outcome, search

HERE = Path(__file__).parent
FILE = "completions/completions_00001.parquet"
SCRIPTS = [
    [f" Is it north {call(' a')}{call(' b')}<|end|>", f" maybe so {call(' boom')}<|end|>", " Yes<|end|>"],
    [f" Is it south {call(' c')}<|end|>", " maybe<|end|>"],
    [" No<|end|>"],
    [f"{call(' d', name='lookup', argument='key')}<|end|>", f" Yes {call(' e')}<|end|>", " Yes<|end|>"],
]


def lookup(key: str) -> str:
    """Look up a key.

    Args:
        key: What to look up.
    """
    return f" value of {key.strip()}"


def length(completions: list[Any], log_extra: Any, **columns: Any) -> list[float]:
    log_extra("solution", ["Yes"] * len(completions))
    return [float(len(c)) for c in completions]


def text_outcome(completions: list[str], **columns: Any) -> list[float | None]:
    return [None, *(1.0 for _ in completions[1:])]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        grpo = {"log_completions": True}
        options = {"trainer_class": GRPOTrainer, "tools": [search, lookup], "reward_funcs": [outcome, length]}
        make_trainer(Path(folder) / "a", SCRIPTS, grpo=grpo, **options).train()
        shutil.copy(Path(folder) / "a" / FILE, HERE / "trl.parquet")
        options = {"trainer_class": GRPOTrainer, "tools": None, "reward_funcs": text_outcome}
        trainer = make_trainer(
            Path(folder) / "b",
            [[" maybe so<|end|>"], [" Yes<|end|>"]],
            grpo={**grpo, "max_completion_length": 8},
            **options,
        )
        trainer.train_dataset = Dataset.from_list([{"prompt": "Where is it ?"}] * 8)
        trainer.train()
        shutil.copy(Path(folder) / "b" / FILE, HERE / "trl_text.parquet")


if __name__ == "__main__":
    main()

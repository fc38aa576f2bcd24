"""The recipes under examples/ stay short, and run as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
RECIPES = ("score_a_log.py", "calls_notebook.ipynb", "own_signal.py", "own_reward.py", "trl_grpo.py")


def run(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{EXAMPLES}", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_at_most_80_lines(name: str) -> None:
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= 80
    assert f"`{name}`" in (EXAMPLES / "README.md").read_text(encoding="utf-8")


def test_score_a_log() -> None:
    printed = run("examples/score_a_log.py")
    assert printed.startswith("88 calls")
    assert "calls that are certainly waste" in printed
    assert "exact_duplicate" in printed


def test_own_signal() -> None:
    assert "record_low, nats" in run("examples/own_signal.py")
    command = "-m deltah score examples/lab/vllm.jsonl.zst --vocab-size 1394 --signal own_signal:record_low"
    printed = run(*command.split())
    assert "mean record" in printed


def test_own_reward() -> None:
    printed = run("examples/own_reward.py")
    # Both answers are right, so the outcome's advantage is 0: what remains is the price, doubled for the call in vain.
    assert printed.split("\n")[0].endswith("[-0.1 -0.1 -0.1  0.   0.   0. ]")
    assert printed.split("\n")[1].endswith("[-0.2 -0.2 -0.2  0.   0.   0. ]")


def test_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    monkeypatch.chdir(ROOT)
    cells = json.loads((EXAMPLES / "calls_notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(cell["source"], names)
    assert len(names["frame"]) == 88  # type: ignore[arg-type]


@pytest.mark.slow
def test_trl_grpo() -> None:
    assert run("examples/trl_grpo.py").count("deltah/reduction_rate") >= 2

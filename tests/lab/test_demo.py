"""The demo end to end with a tiny budget: processes, table, page, second run, refusal of another configuration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl")
ROOT = Path(__file__).parents[2]


def demo(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "120"}
    command = [sys.executable, "-m", "deltah", "demo", "--out", str(out), "--eval-tasks", "10", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def tables(output: str) -> str:
    """Printed tables, without the lines that state times of this sitting."""
    return output[output.index("decoding, 95 %") : output.index(" s in this sitting")].rsplit("\n", 1)[0]


@pytest.mark.slow
def test_demo_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = demo(out, "--steps", "2", "--arms", "sparse,outcome")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "questions that need a tool" in done.stdout
    page = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert [arm["name"] for arm in page["arms"]] == ["start", "sparse", "outcome"]
    assert {curve["title"] for curve in page["curves"]}

    again = demo(out, "--steps", "2", "--arms", "sparse,outcome")
    assert again.returncode == 0
    assert tables(again.stdout) == tables(done.stdout)
    other = demo(out, "--steps", "3", "--arms", "sparse")
    assert other.returncode == 2
    assert "steps: 2 then, 3 now" in other.stderr.replace("\n", " ")


@pytest.mark.slow
def test_score_of_the_demos_traces_equals_its_logged_values(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    assert demo(out, "--steps", "1", "--arms", "dense").returncode == 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "deltah", "score", "--json", str(out / "dense" / "traces")]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
    logged = json.loads((out / "dense" / "metrics.jsonl").read_text().splitlines()[0])
    shared = [key for key in said if key.startswith("deltah/") and key in logged]
    assert len(shared) >= 10
    for key in shared:
        assert said[key] == pytest.approx(logged[key], abs=1e-6), key

"""`python -m experiments.coldstart world` writes the demo's world and states what docs/lab.md says of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from deltah.lab.questions import KNOWN_SUBJECT

ROOT = Path(__file__).parents[2]


def test_the_docs_state_what_the_shipped_world_asks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.coldstart", "world", str(tmp_path), "--seed", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    text = " ".join((ROOT / "docs" / "lab.md").read_text(encoding="utf-8").split())
    lines = said.splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == ["train", "eval", "eval"]
    for line in lines:
        assert line in text
    assert f"{KNOWN_SUBJECT:.0%}" in text.replace(" %", "%")

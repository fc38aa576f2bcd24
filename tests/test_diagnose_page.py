"""The commands of docs/diagnose.md, as printed, on the recorded log: score, study, report and probe."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "diagnose.md").read_text("utf-8")


def printed() -> list[str]:
    """Commands of the page that name files of the repository; a backslash joins lines."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("deltah ") and "examples/" in line]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return tmp_path


def run(command: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "120"}
    arguments = [sys.executable, "-m", "deltah", *shlex.split(command)[1:], *more]
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_the_page_prints_each_command() -> None:
    assert {command.split()[1] for command in printed()} == {"score", "study", "report", "probe"}


@pytest.mark.slow
def test_commands_as_printed(checkout: Path) -> None:
    for command in printed():
        run(command, checkout)
    calls = json.loads((checkout / "report.json").read_text())["headline"]["figures"]
    assert calls
    study = json.loads((checkout / "examples" / "lab" / "study.json").read_text())
    assert study["calls"] == 88
    again = run("deltah report examples/lab/vllm.jsonl.zst --vocab-size 1394 --out again.html", checkout)
    assert "again.html" in again.stdout
    assert "Pilot study" in (checkout / "again.html").read_text(), "the study beside the log is in its report"


@pytest.mark.slow
def test_a_probe_of_the_recorded_log(checkout: Path) -> None:
    [command] = [c for c in printed() if c.startswith("deltah probe")]
    command = command.replace("--dry-run", "").replace("--max-calls 20", "--max-calls 4")
    run(command, checkout)
    rows = [json.loads(line) for line in (checkout / "probe.jsonl").read_text().splitlines()]
    assert sum(row["reason"] is None for row in rows) == 4
    run("deltah study examples/lab/vllm.jsonl.zst --vocab-size 1394 --probe probe.jsonl --out .", checkout)
    assert "placebo_controlled" in (checkout / "study.md").read_text()

"""The demo end to end with a tiny budget: processes, table, page, second run, refusal of another configuration."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import make_trajectory

from deltah.core.metrics import CALLS, OUTCOME, REDUCTION_RATE
from deltah.runs import RunDirectory
from deltah.traces import write_traces

pytest.importorskip("trl")
ROOT = Path(__file__).parents[2]


def demo(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "120"}
    command = [sys.executable, "-m", "deltah", "demo", "--out", str(out), "--eval-tasks", "10", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def tables(output: str) -> str:
    """Printed tables, without the line that states the time."""
    return output[output.index("decoding, 95 %") : output.index("finished in ")]


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


def test_a_finished_job_shows_its_evaluation_and_not_its_last_batch(tmp_path: Path) -> None:
    from deltah.lab.demo import Job, _refresh

    job = Job(name="sparse", arguments=[], log=tmp_path / "log", run=RunDirectory(tmp_path / "sparse"), total=2)
    job.run.path.mkdir()
    job.run.append_metrics({"step": 2, OUTCOME: 0.1, CALLS: 9.0})
    job.run.set_status("training", 2, 2)
    _refresh(job)
    assert job.metrics is not None
    assert job.metrics[OUTCOME] == 0.1
    job.run.set_status("evaluating", 392, 400)
    _refresh(job)
    assert (job.phase, job.done, job.metrics) == ("evaluating", 392, None)
    held_out = [make_trajectory([[1.0], [0.5]], id=str(i), outcome=i / 2) for i in (1, 2)]
    write_traces(job.run.evaluation("sampled"), held_out)
    job.run.finish({}, total=2)
    _refresh(job)
    assert (job.phase, job.done, job.total) == ("done", 2, 2)
    assert job.metrics is not None
    assert {key: job.metrics[key] for key in (OUTCOME, CALLS, REDUCTION_RATE)} == {
        OUTCOME: 0.75, CALLS: 1.0, REDUCTION_RATE: 1.0
    }  # fmt: skip


def working_on(out: Path) -> list[int]:
    """Processes that name the demo's directory on their command line and have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line, status = (entry / "cmdline").read_bytes().decode(), (entry / "status").read_text()
        except OSError:
            continue
        if str(out) in line and "\nState:\tZ" not in status:
            found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks at /proc")
def test_a_killed_demo_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    options = ["--arms", "sparse", "--steps", "4", "--eval-tasks", "10"]
    command = [sys.executable, "-m", "deltah", "demo", "--out", str(out), *options]
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143)):
        parent = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            # Once in the middle of loading, once in the middle of training.
            begun = (
                (lambda: len(working_on(out)) >= 3) if number is signal.SIGKILL else (out / "sparse/run.json").exists
            )
            assert wait_until(begun, 120)
            assert parent.poll() is None
            parent.send_signal(number)
            said, _ = parent.communicate(timeout=30)
            assert parent.returncode == code, said
            assert wait_until(lambda: not working_on(out), 5), "children outlived the demo"
        finally:
            parent.kill()
            for pid in working_on(out):
                os.kill(pid, signal.SIGKILL)
    assert "run the same command again to continue" in said
    done = demo(out, "--arms", "sparse", "--steps", "4")
    assert done.returncode == 0, done.stderr + done.stdout
    rows = (out / "sparse" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4]

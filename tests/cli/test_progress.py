"""Progress without a terminal: plain lines, not too many, and the last word; with one: bars that end at the end."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress
from study_builders import agent

import deltah.cli.terminal
from deltah.calls.table import LogOptions, ScoredLog
from deltah.cli.terminal import Display, display, reading, reporting
from deltah.core import metrics
from deltah.core.types import Trajectory
from deltah.traces import write_traces

ROOT = Path(__file__).parents[2]


class Clock:
    """Seconds, and the lines that were written with the second they came in."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lines: list[tuple[float, str]] = []
        progress = Progress(disable=True, get_time=lambda: self.now, speed_estimate_period=300)
        self.shown = Display(progress, lambda line: self.lines.append((self.now, line)))


def test_lines_are_rare_and_the_last_one_is_final() -> None:
    clock = Clock()
    for second in range(36):
        clock.now = float(second)
        clock.shown.show("probe", description="probe", done=second, total=100)
    clock.shown.show("probe", description="probe", done=100, total=100)
    clock.shown.flush()
    clock.shown.flush()
    assert clock.lines == [
        (10.0, "probe 10/100, 0:00:10, 0:01:30 left\n"),
        (20.0, "probe 20/100, 0:00:20, 0:01:20 left\n"),
        (30.0, "probe 30/100, 0:00:30, 0:01:10 left\n"),
        (35.0, "probe 100/100, 0:00:35\n"),
    ]


def test_a_line_holds_all_that_changed_and_none_that_waits() -> None:
    clock = Clock()
    clock.shown.show("a", description="sparse   training", done=3, total=28, numbers="F1 0.70")
    clock.shown.show("b", description="start    waiting", total=40, waiting=True)
    clock.shown.flush()
    clock.now = 4.0
    clock.shown.show("b", description="start    evaluating", done=0, total=40, afresh=True)
    clock.now = 34.0
    clock.shown.show("b", description="start    evaluating", done=10, total=40)
    clock.now = 64.0
    clock.shown.show("b", description="start    evaluating", done=20, total=40)
    assert clock.lines == [
        (0.0, "sparse training 3/28, F1 0.70, 0:00:00\n"),
        (34.0, "start evaluating 10/40, 0:00:30\n"),
        (64.0, "start evaluating 20/40, 0:01:00, 0:01:00 left\n"),
    ]


def test_without_a_terminal_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting("train sparse", "evaluate") as (training, held_out):
        training(2, 2, {metrics.OUTCOME: 0.5, metrics.CALLS: 2.0})
        held_out(6, 6, {})
    with reporting("resampling") as (report,):
        report(9, 9, {})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "train sparse 2/2, F1 0.50  calls 2.00, 0:00:00; evaluate 6/6, 0:00:00",
        "resampling 9/9, 0:00:00",
    ]


def test_hidden_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting("train", hidden=True) as (training,):
        training(1, 1, {})
    assert capsys.readouterr() == ("", "")


def test_an_error_still_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> None:
        with display() as shown:
            shown.show("probe", description="probe", done=12, total=100)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert capsys.readouterr().err == "probe 12/100, 0:00:00\n"


def test_bars_show_the_last_state() -> None:
    progress = Progress(console=Console(file=io.StringIO()), auto_refresh=False)
    bars = Display(progress)
    bars.show("a", description="probe", total=100, waiting=True)
    [task] = progress.tasks
    assert not task.started
    bars.show("a", description="probe", done=5, total=100, numbers="F1 0.10", afresh=True)
    bars.show("a", description="done", done=400, total=400, numbers="F1 0.90")
    assert (task.started, task.completed, task.total, task.finished) == (True, 400, 400, True)
    assert (task.description, task.fields["numbers"]) == ("done", "F1 0.90")


def test_a_piped_command_gives_results_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_traces(tmp_path / "t.jsonl", [agent(rng, q, calls=2.5, skill=0.6) for q in range(12)])
    command = [sys.executable, "-m", "deltah", "study", str(tmp_path / "t.jsonl"), "--resamples", "100"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "━" not in done.stdout + done.stderr
    assert "resampling" not in done.stdout
    line, *notes = done.stderr.splitlines()
    assert all(note.startswith("Note: ") for note in notes)
    assert line.startswith("resampling ")
    done_part, total = line.split(",")[0].removeprefix("resampling ").split("/")
    assert done_part == total


def test_reading_is_told_of_logs_that_take_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "traces.jsonl"
    write_traces(path, [Trajectory(id=name, segments=()) for name in "ab"])
    with reading() as watch:
        assert len(list(ScoredLog(path, LogOptions(watch=watch)))) == 2
    assert capfd.readouterr().err == ""
    for name in ("LINE_EVERY_S", "READ_AFTER_S", "_READ_EVERY_S"):
        monkeypatch.setattr(deltah.cli.terminal, name, 0.0)
    with reading() as watch:
        assert len(list(ScoredLog(path, LogOptions(watch=watch)))) == 2
    assert capfd.readouterr().err.splitlines() == ["trajectories read 1, 0:00:00", "trajectories read 2, 0:00:00"]


def test_a_bar_of_reading_appears_late_and_vanishes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        deltah.cli.terminal, "Console", lambda **_: Console(file=screen, force_terminal=True, width=100)
    )
    with reading() as watch:
        watch(1)
    assert "read" not in screen.getvalue()
    monkeypatch.setattr(deltah.cli.terminal, "READ_AFTER_S", 0.0)
    with reading() as watch:
        watch(12)
    shown = screen.getvalue()
    assert "trajectories read" in shown
    assert "12/?" in shown
    assert shown.endswith("\x1b[2K"), "the line is erased at the end"

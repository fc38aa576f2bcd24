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

import deltah.cli.progress
from deltah.calls.logs import LogOptions, ScoredLog
from deltah.cli.progress import Bars, Lines, State, display, reading, reporting, reporting_phases
from deltah.core import metrics
from deltah.core.types import Trajectory
from deltah.stats.scoring import score_log
from deltah.traces import write_traces

ROOT = Path(__file__).parents[2]


class Clock:
    """Seconds, and the lines that were written with the second they came in."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lines: list[tuple[float, str]] = []
        self.shown = Lines(lambda line: self.lines.append((self.now, line)), lambda: self.now)


def state(done: int, total: int | None = 100, **fields: object) -> State:
    return State(description="probe", done=done, total=total, **fields)  # type: ignore[arg-type]


def test_lines_are_rare_and_the_last_one_is_final() -> None:
    clock = Clock()
    for second in range(36):
        clock.now = float(second)
        clock.shown.show("probe", state(second))
    clock.shown.show("probe", state(100))
    clock.shown.flush()
    clock.shown.flush()
    assert clock.lines == [
        (10.0, "probe 10/100, 0:10, 1:30 left\n"),
        (20.0, "probe 20/100, 0:20, 1:20 left\n"),
        (30.0, "probe 30/100, 0:30, 1:10 left\n"),
        (35.0, "probe 100/100, 0:35\n"),
    ]


def test_a_line_holds_all_that_changed_and_none_that_waits() -> None:
    clock = Clock()
    clock.shown.show("a", State(description="sparse   training", done=3, total=28, numbers="F1 0.70"))
    clock.shown.show("b", State(description="start    waiting", total=40, waiting=True))
    clock.shown.flush()
    clock.now = 4.0
    clock.shown.show("b", State(description="start    evaluating", done=0, total=40), afresh=True)
    clock.now = 64.0
    clock.shown.show("b", State(description="start    evaluating", done=20, total=40))
    assert clock.lines == [
        (0.0, "sparse training 3/28, F1 0.70, 0:00\n"),
        (64.0, "start evaluating 20/40, 1:00, 1:00 left\n"),
    ]


def test_without_a_terminal_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting_phases("train sparse", "evaluate") as (training, held_out):
        training(2, 2, {metrics.OUTCOME: 0.5, metrics.CALLS: 2.0})
        held_out(6, 6, {})
    with reporting("resampling") as report:
        report(9, 9, {})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "train sparse 2/2, F1 0.50  calls 2.00, 0:00; evaluate 6/6, 0:00",
        "resampling 9/9, 0:00",
    ]


def test_hidden_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting_phases("train", hidden=True) as (training,):
        training(1, 1, {})
    assert capsys.readouterr() == ("", "")


def test_an_error_still_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> None:
        with display() as shown:
            shown.show("probe", state(12))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert capsys.readouterr().err == "probe 12/100, 0:00\n"


def test_bars_show_the_last_state() -> None:
    progress = Progress(console=Console(file=io.StringIO()), auto_refresh=False)
    bars = Bars(progress)
    bars.show("a", state(0, waiting=True))
    [task] = progress.tasks
    assert not task.started
    bars.show("a", state(5, numbers="F1 0.10"), afresh=True)
    bars.show("a", State(description="done", done=400, total=400, numbers="F1 0.90"))
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
    [line] = done.stderr.splitlines()
    assert line.startswith("resampling ")
    done_part, total = line.split(",")[0].removeprefix("resampling ").split("/")
    assert done_part == total


@pytest.mark.parametrize(("every_s", "said"), [(60.0, ""), (0.0, "trajectories read 1, 0:00")])
def test_reading_is_told_of_logs_that_take_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], every_s: float, said: str
) -> None:
    path = tmp_path / "traces.jsonl"
    write_traces(path, [Trajectory(id=name, segments=()) for name in "ab"])
    monkeypatch.setattr(deltah.cli.progress, "LINE_EVERY_S", every_s)
    with reading() as watch:
        assert len(list(ScoredLog(path, LogOptions(watch=watch)))) == 2
    lines = capfd.readouterr().err.splitlines()
    assert said in [*lines, ""]
    assert len(lines) == (3 if said else 0)
    with reading() as watch:
        score_log(ScoredLog(path, LogOptions(watch=watch)))
    assert capfd.readouterr().err.splitlines()[-1:] == (["trajectories read 2, 0:00"] if said else [])


def test_a_bar_of_reading_appears_late_and_vanishes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        deltah.cli.progress, "Console", lambda **_: Console(file=screen, force_terminal=True, width=100)
    )
    with reading() as watch:
        watch(1)
    assert "read" not in screen.getvalue()
    monkeypatch.setattr(deltah.cli.progress, "_BAR_AFTER_S", 0.0)
    with reading() as watch:
        watch(12)
    shown = screen.getvalue()
    assert "trajectories read" in shown
    assert "12/?" in shown
    assert shown.endswith("\x1b[2K"), "the line is erased at the end"

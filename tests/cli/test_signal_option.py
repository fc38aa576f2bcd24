"""`--signal` of the commands that read logs: which names work, and what the tables call them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from builders import make_trajectory
from typer.testing import CliRunner

from deltah.calls.table import LogOptions, ScoredLog
from deltah.cli.app import app
from deltah.core.signals import SIGNALS
from deltah.errors import InvalidValueError
from deltah.runs import log_signals
from deltah.traces import write_traces


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    path = tmp_path / "traces.jsonl"
    write_traces(path, [make_trajectory([[2.0], [1.0], [1.01]], id="0"), make_trajectory([[1.0], [0.99]], id="1")])
    return path


@pytest.mark.parametrize(
    ("signal", "header"),
    [
        ("delta_h", ["mean ΔH,", "nats"]),
        ("ratio", ["mean ΔH", "ratio"]),
        ("entropy_before", ["mean −H", "before, nats"]),
        ("cumulative", ["mean", "cumulative", "ΔH, nats"]),
    ],
)
def test_the_mean_of_a_signal_has_its_title_and_unit(traces: Path, signal: str, header: list[str]) -> None:
    result = CliRunner().invoke(app, ["score", str(traces), "--signal", signal], env={"COLUMNS": "80"})
    lines = result.output.splitlines()
    first = next(i for i, line in enumerate(lines) if header[0] in line)
    assert all(part in line for part, line in zip(header, lines[first:], strict=False))
    assert ("nats" in result.output) is (signal != "ratio")


@pytest.mark.parametrize("command", ["score", "report"])
def test_the_signals_to_choose_from_are_those_that_work(traces: Path, tmp_path: Path, command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
    (line,) = (line for line in shown.splitlines() if "--signal" in line)
    listed = re.findall(r"[a-z_]+", line.split("One of ")[1].split(";")[0])
    assert listed == list(log_signals()) == [name for name in SIGNALS if name != "position_corrected"]
    for name in listed:
        out = ["--out", str(tmp_path / "page.html")] if command == "report" else []
        result = CliRunner().invoke(app, [command, str(traces), "--signal", name, *out])
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("signal", ["position_corrected", "nothing"])
def test_a_signal_that_does_not_work_is_offered_by_no_error(traces: Path, signal: str) -> None:
    choices = r"choose one of: delta_h, ratio, tail, entropy_before, cumulative; or name"
    with pytest.raises(InvalidValueError, match=choices) as e:
        ScoredLog(traces, LogOptions(signal=signal))
    assert ("`deltah study` computes it" in str(e.value)) is (signal == "position_corrected")

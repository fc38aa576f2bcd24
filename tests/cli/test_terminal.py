"""Tables that stay readable on a terminal of 80 columns."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import make_trajectory
from study_builders import agent
from typer.testing import CliRunner

from deltah import write_traces
from deltah.calls.schema import TABLES
from deltah.cli.app import app
from deltah.cli.terminal import broken
from deltah.core.types import Scalar


@pytest.mark.parametrize(
    ("name", "width", "lines"),
    [
        ("search", 10, ["search"]),
        ("position_corrected", 18, ["position_corrected"]),
        ("position_corrected", 12, ["position_", "corrected"]),
        ("not correct", 10, ["not", "correct"]),
        ("web.browser/open-page", 10, ["web.", "browser/", "open-page"]),
        ("interrogation", 10, ["interrogation"]),
        ("a__b", 3, ["a__", "b"]),
        ("", 10, [""]),
    ],
)
def test_names_are_cut_where_words_end(name: str, width: int, lines: list[str]) -> None:
    assert broken(name, width).split("\n") == lines


def at_80_columns(*arguments: object) -> list[str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    return str(result.output).splitlines()


def test_score_breaks_no_word_and_no_interval(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    trajectories = []
    for i in range(30):
        t = make_trajectory(rng.gamma(2.0, 1.0, (4, 5)).tolist(), id=str(i), question=str(i))
        names = ("search_documents", "open_page", "")
        trajectories.append(
            replace(t, calls=tuple(replace(c, name=n) for c, n in zip(t.calls, names, strict=True)), outcome=0.0)
        )
    write_traces(tmp_path / "t.jsonl", trajectories)
    lines = at_80_columns("score", tmp_path / "t.jsonl")
    tables = [line for line in lines if not line.startswith(("·", "30 "))]
    assert max(map(len, tables)) <= 80
    assert sum(len(re.findall(r"\[[−+]?\d\.\d+, [−+]?\d\.\d+\]", line)) for line in tables) >= 2 * (3 + 3 + 1)
    text = "\n".join(tables)
    assert text.count("[") == text.count("]") == len(re.findall(r"\[[^\n\]]*\]", text)), "an interval is cut"
    first = [line.split()[0] for line in tables if line.split()]
    assert {"search_", "documents", "open_page", "(not", "parsed)"} <= set(first)


def test_names_from_a_log_are_neither_markup_nor_commands_to_the_terminal(tmp_path: Path) -> None:
    names = ("x\\[/red]", "[bold]y", "\x1b[31mz\x07", "end\\", "", "  ")
    t = make_trajectory([[1.0]] * (1 + len(names)))
    calls = tuple(replace(c, name=n) for c, n in zip(t.calls, names, strict=True))
    write_traces(tmp_path / "t.jsonl", [replace(t, calls=calls, model="gpt-4\x1b[0m", metadata=ASSUMED)])
    lines = at_80_columns("score", tmp_path / "t.jsonl", "--price", "a\\[/b]=1")
    assert sum(line.split()[:2] == ["(not", "1"] for line in lines) == 2, "two blank names are two rows"
    text = "\n".join(lines)
    assert "\x1b" not in text
    assert "\x07" not in text
    for shown in ("x\\[/red]", "[bold]y", "␛[31mz␇", "end\\", "gpt-4␛[0m"):
        assert shown in text


ASSUMED: dict[str, Scalar] = {"vocab_size_from": "model name", "vocab_size": 7}


@pytest.mark.parametrize("size", ["many", None, float("inf")])
def test_metadata_that_passes_for_ours_is_no_error(tmp_path: Path, size: Scalar) -> None:
    t = make_trajectory([[1.0], [0.5]], model="m", metadata=ASSUMED | {"vocab_size": size})
    write_traces(tmp_path / "t.jsonl", [t])
    assert at_80_columns("score", tmp_path / "t.jsonl")[0].startswith("1 trajectory, 1 call,")


def test_study_breaks_no_name_of_a_signal(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_traces(tmp_path / "t.jsonl", [agent(rng, q, calls=2.5, skill=0.6) for q in range(40)])
    lines = at_80_columns("study", tmp_path / "t.jsonl", "--resamples", 100)
    assert max(len(line) for line in lines if not line.startswith("Note: ")) <= 80
    rows = [line.split()[0] for line in lines if re.search(r" \d\.\d\d ", line) and line.startswith(" ")]
    assert {"position_corrected", "entropy_before", "call_index"} <= set(rows)
    assert any(line.startswith(" call_index (baseline) ") for line in lines)


def on_a_terminal(*arguments: object) -> str:
    """What a terminal of 80 columns shows."""
    program = (
        "import os, pty, sys\n"
        "def read(fd):\n"
        "    return os.read(fd, 65536)\n"
        "sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:], read)))\n"
    )
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source, "TERM": "xterm", "COLUMNS": "80", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "deltah", *map(str, arguments)]
    wrapped = [sys.executable, "-c", program, *command]
    done = subprocess.run(wrapped, capture_output=True, check=True, env=environment, stdin=subprocess.DEVNULL)
    return re.sub(r"\x1b\[[?\d;]*[A-Za-z]|\r", "", done.stdout.decode())


def test_an_answer_fits_the_terminal_and_a_pipe_gets_all_of_it(tmp_path: Path) -> None:
    t = make_trajectory([[2.0], [2 / 3], [1.0]], id="\x1b[31mred", prediction="\u202e")
    write_traces(tmp_path / "t.jsonl", [t])
    everything = ("score", tmp_path / "t.jsonl", "--sql", "SELECT * FROM calls LIMIT 2")
    shown = on_a_terminal(*everything)
    assert max(map(len, shown.splitlines())) <= 80
    assert f"{len(TABLES['calls'])} columns" in " ".join(shown.split())
    assert "trajectory" in shown
    piped = CliRunner().invoke(app, [str(a) for a in everything]).output
    assert all(f" {name} " in piped for name in ("trajectory", "tool", "value", "waste_level", "key"))
    assert "\x1b" not in shown + piped
    query = "SELECT prediction FROM trajectories"
    assert "⟨U+202E⟩" in CliRunner().invoke(app, [*map(str, everything[:3]), query]).output
    # ΔH is 2/3 - 2 = -1.3333 and 1 - 2/3 = 0.3333; a count has no digits to lose.
    query = "SELECT value, 123456.78::DOUBLE AS tokens, 0::DOUBLE AS none, 2.5e-7 AS fee, index FROM calls"
    numbers = [line.split("│")[1:-1] for line in on_a_terminal(*everything[:3], query).splitlines() if "│" in line]
    assert [[cell.strip() for cell in row] for row in numbers[2:]] == [
        ["-1.333", "123457.0", "0.0", "2.5e-07", "1"],
        ["0.3333", "123457.0", "0.0", "2.5e-07", "2"],
    ]
    assert "-1.3333333333333335" in CliRunner().invoke(app, [*map(str, everything[:3]), query]).output


def test_all_calls_have_a_row_with_the_numbers_of_the_report(tmp_path: Path) -> None:
    """Ten questions of two calls, ΔH -1 and +0.5: half reduced, mean -0.25; an eleventh question without a call."""
    trajectories = [make_trajectory([[2.0], [1.0], [1.5]], id=f"t{i}", question=f"Q{i}") for i in range(10)]
    write_traces(tmp_path / "t.jsonl", [*trajectories, make_trajectory([[1.0]], id="t10", question="Q10")])
    lines = at_80_columns("score", tmp_path / "t.jsonl")
    [row] = [line.split() for line in lines if line.strip().startswith("all calls")]
    assert row[:5] == ["all", "calls", "20", "0.50", "−0.250"]
    below = lines[[line.split()[:2] for line in lines].index(["all", "calls"]) + 1]
    done = CliRunner().invoke(app, ["report", str(tmp_path / "t.jsonl"), "--out", str(tmp_path / "p.html")])
    assert done.exit_code == 0, done.output
    [overview] = json.loads((tmp_path / "p.json").read_text())["overview"]
    cells = dict(zip((c["key"] for c in overview["columns"]), overview["rows"][0]["cells"], strict=True))
    assert below.split() == " ".join(cells[key]["interval"] for key in ("reduction_rate", "mean_value")).split()
    assert "Shares and means stand above their 95 % interval; other columns count calls." in lines


def test_notes_come_last_and_begin_with_a_capital(tmp_path: Path) -> None:
    t = make_trajectory([[1.0], [0.5]], question="Q", model="m", metadata=ASSUMED)
    write_traces(tmp_path / "t.jsonl", [t])
    for command, out in (("score", "r.csv"), ("report", "p.html"), ("study", "s.json")):
        lines = at_80_columns(command, tmp_path / "t.jsonl", "--out", tmp_path / out)
        notes = [line for line in lines if line.startswith("Note: ")]
        assert notes
        assert lines[-len(notes) :] == notes
        assert all(note[6].isupper() for note in notes)


def test_money_is_shown_where_a_price_is_known(tmp_path: Path) -> None:
    """The second call repeats the first with the same result, and entropy rises: certified waste."""
    t = make_trajectory([[1.0], [0.5], [2.0]])
    write_traces(tmp_path / "t.jsonl", [t])
    (tmp_path / "tools.toml").write_text(f'{t.calls[0].name} = "read"\n')
    command = ("score", tmp_path / "t.jsonl", "--tools", tmp_path / "tools.toml")
    bare, priced = ("\n".join(at_80_columns(*command, *options)) for options in ((), ("--price", "input=1")))
    assert "if these wasteful calls were dropped" in bare
    assert "USD" not in bare
    assert "price" not in bare
    assert "USD" in priced

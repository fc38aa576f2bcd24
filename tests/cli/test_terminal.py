"""Tables that stay readable on a terminal of 80 columns."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import make_trajectory
from study_builders import agent
from typer.testing import CliRunner

from deltah import write_traces
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
    assert max(map(len, lines)) <= 80
    rows = [line.split()[0] for line in lines if re.search(r" \d\.\d\d ", line) and line.startswith(" ")]
    assert {"position_corrected", "entropy_before", "call_index"} <= set(rows)
    assert any(line.startswith(" call_index (baseline) ") for line in lines)

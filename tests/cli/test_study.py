"""`deltah study` as a user runs it: tables, files, exit codes, one-sentence errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from study_builders import agent
from typer.testing import CliRunner, Result

from deltah.cli import cmd_study
from deltah.core.segments import SegmentEntropies
from deltah.core.types import Estimator, FloatArray
from deltah.errors import ConfigError, DataError, DeltahError
from deltah.stats.study import StudyResult
from deltah.stats.study_text import study_markdown
from deltah.traces import write_traces

app = typer.Typer()
app.command("study")(cmd_study.command)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in (*arguments, "--resamples", 100)])


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "traces.jsonl"
    write_traces(path, [agent(rng, q, calls=2.5, skill=0.6) for q in range(40)])
    return path


def test_tables_and_files(traces: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "trajectory,call,good\n" + "".join(f"q{q:03d},c0,{q % 2}\n" for q in range(40) if q % 3), encoding="utf-8"
    )
    result = run(traces, "--labels", labels, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "correct: the trajectory's outcome is 1" in result.output
    assert "good: a column of the labels file" in result.output
    assert "call_index" in result.output
    saved = json.loads((tmp_path / "out" / "study.json").read_text(encoding="utf-8"))
    study_result = StudyResult.from_dict(saved)
    assert study_result.resamples == 100
    assert {"correct", "executed", "not_redundant", "good"} == set(study_result.labels)
    assert (tmp_path / "out" / "study.md").read_text(encoding="utf-8") == study_markdown(study_result)


def test_gold_evidence_from_tasks_and_corpus(traces: Path, tmp_path: Path) -> None:
    tasks, corpus = tmp_path / "tasks.json", tmp_path / "corpus.json"
    rows = [{"id": f"task-{q}", "question": f"Q{q}?", "answer": "x", "supporting": ["a"]} for q in range(40)]
    tasks.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    corpus.write_text(json.dumps({"id": "a", "contents": "lives in Tarsa."}), encoding="utf-8")
    result = run(traces, "--tasks", tasks, "--corpus", corpus, "--out", tmp_path / "found.json")
    assert result.exit_code == 0, result.output
    assert "gold_evidence" in json.loads((tmp_path / "found.json").read_text())["positions"][0]["labels"]
    assert (tmp_path / "found.md").exists()


def error_of(result: Result) -> DeltahError:
    assert isinstance(result.exception, DeltahError)
    return result.exception


def test_errors_say_what_to_do(traces: Path, tmp_path: Path) -> None:
    error = error_of(run(traces, "--corpus", traces))
    assert isinstance(error, ConfigError)
    assert "--corpus goes with --tasks" in str(error)
    (tmp_path / "labels.csv").write_text("trajectory,call,good\nother,c0,1\n")
    assert "no row of the labels belongs to a call" in str(error_of(run(traces, "--labels", tmp_path / "labels.csv")))
    (tmp_path / "empty.jsonl").write_text("{broken\n")
    error = error_of(run(tmp_path / "empty.jsonl"))
    assert isinstance(error, DataError)
    assert "no trajectory could be read" in str(error)
    assert "choose another place" in str(error_of(run(traces, "--out", traces / "x")))
    assert "ends in .json" in str(error_of(run(traces, "--out", tmp_path / "x.pdf")))


def entropy_after(h: SegmentEntropies) -> tuple[FloatArray, FloatArray, FloatArray]:
    """H(r_k), a signal of one's own."""
    return h.point[1:], h.lower[1:], h.upper[1:]


def test_a_signal_of_ones_own_is_studied(traces: Path, tmp_path: Path) -> None:
    name = f"{__name__}:entropy_after"
    result = run(traces, "--signal", name, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))["associations"]
    assert {a["label"] for a in found if a["signal"] == name and a["reason"] is None} >= {"correct"}
    assert f"- `{name}`: a signal of the user's own" in (tmp_path / "study.md").read_text(encoding="utf-8")


def test_unreadable_records_change_the_exit_code(traces: Path) -> None:
    with traces.open("a") as file:
        file.write("{broken\n")
    result = run(traces)
    assert result.exit_code == 1
    assert "1 record could not be read" in result.output


def test_a_label_that_no_call_has_says_which_option_gives_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "traces.jsonl"
    write_traces(
        path, [replace(agent(rng, q, calls=2.5, skill=0.6), outcome=None, golden_answers=()) for q in range(10)]
    )
    result = run(path)
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "Not computed: no trajectory is graded; give a task file that holds their questions with --tasks" in said
    assert "0 good of 0 calls" not in said
    assert "has both" not in said


def test_what_a_reader_must_know_of_the_log_is_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "traces.jsonl"
    blind = [
        replace(agent(rng, q, calls=2.5, skill=0.6), entropy=None, estimator=Estimator.NONE, logprobs=None)
        for q in range(10)
    ]
    unfit = {"score_outside_0_1": 85.0}
    graded = [replace(t, outcome=None, golden_answers=(), metadata=unfit if i < 2 else {}) for i, t in enumerate(blind)]
    write_traces(path, graded)
    result = CliRunner().invoke(app, [str(path), "--resamples", "100"])
    assert result.exit_code == 0, result.output
    n = sum(t.n_calls for t in blind)
    assert f"Note: No log-probabilities for {n} of {n} calls, so only the text is judged there." in result.stderr
    assert "Note: The score of 2 trajectories is outside [0, 1] (such as 85), so it is not used." in result.stderr

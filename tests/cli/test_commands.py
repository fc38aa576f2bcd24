"""The commands as a user runs them: output, files, exit codes, one-sentence errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from builders import make_trajectory
from typer.testing import CliRunner

from deltah.cli.app import app
from deltah.cli.settings import resolve
from deltah.core.metrics import batch_metrics
from deltah.core.rewards import RewardConfig
from deltah.core.signals import SignalConfig, score
from deltah.engines.config import TrainConfig
from deltah.errors import ConfigError
from deltah.traces import write_traces

PLURAL_OF_ONE = re.compile(r"\b1 (?:\w+ )?(?:files|calls|records|rows|trajectories|questions|tokens|turns)\b")


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    path = tmp_path / "traces.jsonl"
    rows = [[[2.0], [1.0], [1.01]], [[1.0], [0.99]], [[1.0]]]
    write_traces(path, [make_trajectory(r, id=str(i), outcome=1.0, question=str(i)) for i, r in enumerate(rows)])
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """As a process, so that the error handling of `main` is in it."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, "-m", "deltah", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_score_prints_tables_and_writes_rows(traces: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["score", str(traces), "--out", str(tmp_path / "calls.csv")])
    assert result.exit_code == 0
    assert "3 trajectories, 3 calls" in result.output
    rows = (tmp_path / "calls.csv").read_text().splitlines()
    assert len(rows) == 4
    assert rows[0].startswith(
        "trajectory,question,call,index,tool,arguments,status,round,calls_in_round,signal,value,unit"
    )


@pytest.mark.parametrize("named", ["log.jsonl", "link.jsonl", "."])
def test_score_writes_over_no_log(tmp_path: Path, traces: Path, named: str) -> None:
    log = tmp_path / "logs" / "log.jsonl"
    log.parent.mkdir()
    traces.rename(log)
    (log.parent / "link.jsonl").symlink_to(log)
    before = log.read_bytes()
    result = CliRunner().invoke(app, ["score", str(log.parent / named), "--out", str(log)])
    assert isinstance(result.exception, ConfigError)
    assert re.search(r"--out \S+log.jsonl would overwrite \S+\.jsonl, which is read", str(result.exception))
    assert log.read_bytes() == before
    calls = log.with_name("calls.jsonl")
    assert CliRunner().invoke(app, ["score", str(log.parent), "--out", str(calls)]).exit_code == 0
    # The second time it lies among the logs, and is no log.
    assert CliRunner().invoke(app, ["score", str(log.parent), "--out", str(calls)]).exit_code == 0
    assert len(calls.read_bytes().splitlines()) == 3
    assert sorted(os.listdir(log.parent)) == ["calls.jsonl", "link.jsonl", "log.jsonl"]


def test_no_command_writes_over_what_it_reads(tmp_path: Path, traces: Path) -> None:
    log, grades = tmp_path / "agent.json", tmp_path / "grades.jsonl"
    traces.rename(log)
    grades.write_text('{"id": "0", "score": 1}\n')
    before = log.read_bytes(), grades.read_bytes()
    for command in (
        ("report", log, "--out", tmp_path / "agent.html"),  # its twin is agent.json
        ("report", log, "--out", log),
        ("report", tmp_path / "*.json", "--out", tmp_path / "agent.html"),
        ("study", log, "--out", log),
        ("score", log, "--answers", grades, "--out", grades),
        ("probe", log, "--server", "http://127.0.0.1:9", "--dry-run", "--out", log),
    ):
        result = CliRunner().invoke(app, [str(part) for part in command])
        assert isinstance(result.exception, ConfigError), command
        assert "would overwrite" in str(result.exception)
    assert (log.read_bytes(), grades.read_bytes()) == before
    assert CliRunner().invoke(app, ["report", str(log), "--out", str(tmp_path / "page.html")]).exit_code == 0


def test_a_report_in_the_folder_of_its_logs(tmp_path: Path, traces: Path) -> None:
    """Its twin replaces no log there; its own earlier twin it does replace, and no command takes that for a log."""
    log, page = tmp_path / "logs" / "x.json", tmp_path / "logs" / "x.html"
    log.parent.mkdir()
    traces.rename(log)
    before = log.read_bytes()
    refused = CliRunner().invoke(app, ["report", str(log.parent), "--out", str(page)])
    assert isinstance(refused.exception, ConfigError)
    assert "x.json, which this command did not write; choose another name, or --force" in str(refused.exception)
    assert log.read_bytes() == before
    log = log.rename(log.with_suffix(".jsonl"))
    pages = []
    for _ in range(2):
        done = CliRunner().invoke(app, ["report", str(log.parent), "--out", str(page)])
        assert done.exit_code == 0, done.output
        pages.append(page.read_bytes())
    assert pages[0] == pages[1]
    for arguments in (["score", str(log.parent)], ["score", str(log.parent / "*.json*")], ["study", str(log.parent)]):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        assert "x.json" not in done.output


def test_a_study_in_the_folder_of_its_logs(tmp_path: Path, traces: Path) -> None:
    log, out = tmp_path / "logs" / "log.json", tmp_path / "logs" / "mine.json"
    log.parent.mkdir()
    traces.rename(log)
    before = log.read_bytes()
    for command in (("study", log.parent, "--out", log), ("probe", log.parent, "--server", "http://x", "--out", log)):
        refused = CliRunner().invoke(app, [str(part) for part in command])
        assert isinstance(refused.exception, ConfigError), command
        assert "log.json, which is read" in str(refused.exception)
    assert log.read_bytes() == before
    for _ in range(2):  # the second time the study of the first lies among the logs
        done = CliRunner().invoke(app, ["study", str(log.parent), "--resamples", "100", "--out", str(out)])
        assert done.exit_code == 0, done.output
    assert CliRunner().invoke(app, ["score", str(log.parent)]).exit_code == 0


def test_rows_of_an_earlier_run_survive_a_log_without_trajectories(tmp_path: Path) -> None:
    out, empty = tmp_path / "calls.jsonl", tmp_path / "empty.jsonl"
    earlier = '{"trajectory":"a","call":"b","tool":"c"}\n'
    out.write_text(earlier)
    empty.touch()
    result = CliRunner().invoke(app, ["score", str(empty), "--out", str(out)])
    assert "no trajectory could be read" in str(result.exception)
    assert out.read_text() == earlier


def test_score_as_json_equals_the_library(traces: Path) -> None:
    from deltah import read_traces

    result = CliRunner().invoke(app, ["score", str(traces), "--json", "--margin", "0.02"])
    said = json.loads(result.output)
    trajectories = list(read_traces(traces))
    import numpy as np

    expected = batch_metrics([score(t, margin=0.02) for t in trajectories], np.ones(3))
    assert said["deltah/reduction_rate"] == pytest.approx(1 / 3)
    assert {k: said[k] for k in expected} == pytest.approx(expected)


def test_score_in_several_processes_and_without_waste(traces: Path, tmp_path: Path) -> None:
    def said(*options: str) -> dict[str, Any]:
        result = CliRunner().invoke(app, ["score", str(traces), "--json", *options])
        assert result.exit_code == 0
        found: dict[str, Any] = json.loads(result.output)
        return found

    whole, alone = said("--workers", "2"), said("--no-waste", "--workers", "1")
    assert said("--workers", "1") == whole
    assert (alone.pop("waste"), alone.pop("savings")) == (None, None)
    assert set(whole.pop("waste")) == {"certified", "likely", "hint", "none"}
    del whole["savings"]
    whole["notes"] = [note for note in whole["notes"] if "may be waste" not in note]
    for name in ("by_tool", "by_round", "by_outcome"):
        for group, row in alone[name].items():
            assert (row.pop("certified"), row.pop("likely")) == (None, None)
            assert isinstance(whole[name][group].pop("certified"), int)
            del whole[name][group]["likely"]
    assert [row["n"] for row in whole["by_round"].values()] == [2, 1]
    assert alone == whole
    table = CliRunner().invoke(app, ["score", str(traces), "--no-waste"]).output
    assert "reduced" in table
    assert "waste" not in table


def test_score_uses_the_signal_of_the_run_the_traces_lie_in(traces: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"command": "train", "config": {"signal": {"margin": 0.02}}}))
    result = CliRunner().invoke(app, ["score", str(traces)])
    assert "margin 0.02" in result.output


def demo_folder(root: Path, source: Path, margins: dict[str, float]) -> Path:
    """A demo as it lies on disk: a manifest of its own, a world, and runs inside."""
    root.mkdir()
    (root / "run.json").write_text(json.dumps({"command": "demo", "config": {"seed": 0}}))
    (root / "world").mkdir()
    (root / "world" / "tasks.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    for arm, margin in margins.items():
        (root / arm / "eval").mkdir(parents=True)
        manifest = {"command": "train", "config": {"reward": arm, "signal": {"name": "ratio", "margin": margin}}}
        (root / arm / "run.json").write_text(json.dumps(manifest))
        (root / arm / "eval" / "sampled.jsonl").write_bytes(source.read_bytes())
    return root


def test_a_demo_folder_stands_for_its_runs(traces: Path, tmp_path: Path) -> None:
    import deltah

    demo = demo_folder(tmp_path / "demo", traces, {"outcome": 0.02, "sparse": 0.02})
    result = CliRunner().invoke(app, ["score", str(demo)])
    assert "6 trajectories" in result.output
    assert "signal ratio, margin 0.02" in result.output
    result = CliRunner().invoke(app, ["score", str(demo), "--margin", "0.5"])
    assert "signal ratio, margin 0.5" in result.output, "an option replaces itself alone"
    assert deltah.signal_of(demo / "sparse" / "eval" / "sampled.jsonl") == SignalConfig(name="ratio", margin=0.02)
    assert deltah.signal_of(traces) == SignalConfig()
    result = CliRunner().invoke(app, ["report", str(demo)])
    assert result.exit_code == 0, result.output
    page = json.loads((demo / "report.json").read_text())
    assert [arm["name"] for arm in page["arms"]] == ["outcome", "sparse"]
    assert len(page["viewer"]["trajectories"]) == 6


def test_runs_that_scored_differently_are_not_mixed(traces: Path, tmp_path: Path) -> None:
    demo = demo_folder(tmp_path / "demo", traces, {"outcome": 0.0, "sparse": 0.02})
    result = run("score", demo)
    assert result.returncode == 2
    assert "different signals" in result.stderr
    result = run("score", demo, "--signal", "nothing")
    assert result.returncode == 2
    assert "unknown signal 'nothing'" in result.stderr


def test_a_run_without_an_evaluation_shows_what_it_trained_on(traces: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "traces").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text(json.dumps({"command": "train", "config": {}}))
    (tmp_path / "run" / "traces" / "step-000001.jsonl").write_bytes(traces.read_bytes())
    result = CliRunner().invoke(app, ["report", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    page = json.loads((tmp_path / "run" / "report.json").read_text())
    assert page["evaluations"] == ["training"]


def test_a_log_of_nothing_but_problems_names_the_first(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"foo": 1}\n')
    result = run("score", tmp_path / "log.jsonl")
    assert result.returncode == 2
    assert "line 1: no known trace format" in result.stderr


def test_unreadable_records_are_listed_and_change_the_exit_code(traces: Path) -> None:
    with traces.open("a") as file:
        file.write("{broken\n")
    result = CliRunner().invoke(app, ["score", str(traces)])
    assert result.exit_code == 1
    assert "3 trajectories" in result.output
    assert "traces.jsonl" in result.output
    assert "1 record could not be read" in result.output


def test_of_many_unreadable_records_the_first_are_listed_and_the_rest_counted(traces: Path) -> None:
    with traces.open("a") as file:
        file.write("{broken\n" * 1234)
    for workers in ("1", "2"):
        result = CliRunner().invoke(app, ["score", str(traces), "--workers", workers])
        listed = [line for line in result.output.splitlines() if line.startswith("left out: ")]
        assert [line.split(", line ")[1].split(":")[0] for line in listed[:-1]] == [str(n) for n in range(4, 24)]
        assert listed[-1] == "left out: 1,214 more"
        assert "1,234 records could not be read" in result.output


def test_tokens_that_the_log_does_not_list_are_noted(tmp_path: Path) -> None:
    [log] = (Path(__file__).parents[1] / "traces" / "data").glob("llama-server-emoji.jsonl*")
    said = "The server sampled 27 tokens of 1 trajectory without listing log-probabilities"
    result = CliRunner().invoke(app, ["score", str(log), "--vocab-size", "1394"])
    assert result.exit_code == 0, result.output
    assert said in " ".join(result.output.split())
    result = CliRunner().invoke(app, ["report", str(log), "--out", str(tmp_path / "r.html"), "--vocab-size", "1394"])
    assert result.exit_code == 0, result.output
    assert said in (tmp_path / "r.json").read_text()


def test_one_of_a_kind_has_no_plural(tmp_path: Path) -> None:
    logs, page = tmp_path / "logs", tmp_path / "page.html"
    logs.mkdir()
    write_traces(logs / "log.jsonl", [make_trajectory([[1.0], [0.5]], outcome=1.0)])
    (logs / "other.txt").write_text("nothing known\n")
    (tmp_path / "grades.jsonl").write_text('{"id": "x", "score": 1}\n')
    with (logs / "log.jsonl").open("a") as file:
        file.write("{broken\n")
    for command in ("score", "study", "report"):
        answers = ["--answers", str(tmp_path / "grades.jsonl")]
        out = ["--out", str(page)] if command == "report" else []
        result = CliRunner().invoke(app, [command, str(logs), *answers, *out])
        assert result.exit_code == 1, result.output
        assert "1 record could not be read" in result.output
        assert not PLURAL_OF_ONE.findall(result.output)
    shown = re.sub(r"<(script|style)[^>]*>.*?</\1>|<[^>]+>", "", page.read_text(), flags=re.S)
    assert "Passed over 1 file without traces" in shown
    assert not PLURAL_OF_ONE.findall(shown)


def test_a_log_without_calls_is_said_to_be_one(tmp_path: Path) -> None:
    log, page = tmp_path / "log.jsonl", tmp_path / "page.html"
    log.write_text('{"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "done"}]}\n')
    scored = CliRunner().invoke(app, ["score", str(log)])
    assert "No trajectory has a tool call, so there is nothing to score." in scored.output
    reported = CliRunner().invoke(app, ["report", str(log), "--out", str(page)])
    assert (scored.exit_code, reported.exit_code) == (0, 0)
    assert "Position matters" not in page.read_text()


def test_report_is_written_beside_the_traces(traces: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(traces)])
    assert result.exit_code == 0, result.output
    assert (traces.parent / "report.html").stat().st_size > 10_000
    assert json.loads((traces.parent / "report.json").read_text())["arms"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "nowhere.jsonl"], "nowhere.jsonl"),
        (
            ["train", "--tasks", "t.jsonl", "--reward", "sparce"],
            "reward: unknown reward 'sparce'; choose one of: outcome, sparse",
        ),
        (["train"], "tasks is missing; give it with --tasks, or in the configuration file (--config)"),
        (["eval"], "eval.tasks is missing; give it with --tasks,"),
        (["train", "--tasks", "t.jsonl", "--set", "eval.limit=4"], "eval.tasks is missing; give it with --eval-tasks,"),
        (["score", "x", "--margin", "wide"], "'wide' is not a valid number"),
        (["score", "x", "--workers", "two"], "'two' is not a valid whole"),
        (["train", "--tasks", "t.jsonl", "--set", "reward.alpha"], "expected key=value"),
        (["train", "--tasks", "t.jsonl", "--set", "rewad.alpha=1"], "unknown configuration key 'rewad'"),
        (["train", "--tasks", "t.jsonl", "--set", "reward.alpha=high"], "reward: alpha is 'high'; expected a number"),
        (["train", "--tasks", "t.jsonl", "--config", "none.toml"], "cannot read the configuration none.toml"),
        (["demo", "--arms", "sparse,best"], "unknown reward 'best'"),
        (["demo", "--arms", ""], "--arms names no arm; choose from: outcome, sparse"),
        (["demo", "--out", f"{__file__}/demo"], "test_commands.py/demo: Not a directory; choose another --out"),
        (
            ["demo", "--out", __file__],
            "test_commands.py exists and is not a run of deltah; choose an empty or a new directory",
        ),
        (["report", "nowhere"], "nowhere"),
    ],
)
def test_a_users_error_is_one_sentence_and_exit_code_2(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_option_beats_file_beats_default(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('tasks = "a.jsonl"\nsteps = 7\n[reward]\nname = "dense"\nalpha = 0.2\n')
    config = resolve(TrainConfig, path, options={"steps": 9, "reward.name": None}, settings=["signal.margin=0.1"])
    assert (config.steps, config.reward, config.signal) == (
        9,
        RewardConfig(name="dense", alpha=0.2),
        SignalConfig(margin=0.1),
    )


def test_a_saved_configuration_reads_back(tmp_path: Path) -> None:
    config = TrainConfig(tasks="a.jsonl", reward=RewardConfig(name="otc"))
    path = tmp_path / "run.json"
    path.write_text(json.dumps(config.to_dict()))
    assert resolve(TrainConfig, path) == config


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("steps = = 3")
    with pytest.raises(ConfigError, match=r"run\.toml is not valid TOML"):
        resolve(TrainConfig, path)


def test_score_answers_a_query(traces: Path) -> None:
    query = "SELECT tool, count(*) AS n, round(avg(value), 3) AS mean FROM calls GROUP BY tool"
    shown = CliRunner().invoke(app, ["score", str(traces), "--sql", query])
    assert [line.split() for line in shown.output.splitlines() if "search" in line] == [
        ["│", "search", "│", "3", "│", "-0.333", "│"]
    ]
    told = CliRunner().invoke(app, ["score", str(traces), "--json", "--sql", "SELECT key, outcome FROM trajectories"])
    assert json.loads(told.stdout) == [{"key": i, "outcome": 1.0} for i in range(3)]
    wrong = CliRunner().invoke(app, ["score", str(traces), "--sql", "SELECT nothing FROM calls"])
    assert isinstance(wrong.exception, ConfigError)
    assert "calls and trajectories" in str(wrong.exception)
    assert CliRunner().invoke(app, ["score", str(traces), "--sql", "CREATE TABLE mine (x INT)"]).exit_code == 0

"""A signal, a reward, a log format, a grader and a tool of one's own, from outside the package, each in one place."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from builders import make_trajectory
from typer.testing import CliRunner

import deltah
from deltah.cli.app import app
from deltah.tasks import Task, grade
from deltah.tools import ToolConfig, build_tools

OWN = '''
"""What a user adds."""

import numpy as np

import deltah


@deltah.SIGNALS.register("halved", title="half ΔH", unit="nats", meaning="half of ΔH", default_margin=0.1)
def halved(h):
    return deltah.Interval(*(values / 2 for values in deltah.delta_h(h)))


@deltah.REWARDS.register("priced", meaning="outcome advantage less a price of each call on the tokens that issued it")
def priced(group, *, price=0.1):
    own = group.outcomes - group.outcomes.mean()
    rounds = [np.array([len(r.calls) for r in t.rounds], dtype=float) for t in group.trajectories]
    return deltah.SegmentAdvantages([np.append(a - price * n, a) for a, n in zip(own, rounds)])


@deltah.GRADERS.register("prefix", title="prefix match", meaning="1 where the answer starts like a gold answer")
def prefix(prediction, golden_answers):
    return float(any(prediction.startswith(gold[:3]) for gold in golden_answers))


@deltah.TOOLS.register("shout", meaning="Upper case")
def shout(text: str) -> str:
    """Write a text in upper case.

    Args:
        text: What to write.
    """
    return text.upper()


@deltah.IMPORTERS.register("mine", meaning="Log of my agent", fields=("steps", "grade"))
def read_mine(record, context):
    entropies = [h for kind, n, h in record["steps"] for _ in range(n)]
    spans = [(kind, n) for kind, n, h in record["steps"]]
    return deltah.trajectory_from_spans(spans, entropies, id=context.default_id, outcome=record["grade"])
'''
RECORD = {"steps": [["prompt", 2, 0], ["reasoning", 2, 3.0], ["call", 2, 0], ["result", 2, 0], ["reasoning", 1, 1.0]]}
NAMES = {"signal": "halved", "reward": "priced", "tools": "shout", "format": "mine"}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The user's module, imported as users import it."""
    (tmp_path / "my_own.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_own", raising=False)
    return importlib.import_module("my_own")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(RECORD | {"grade": grade}) + "\n" for grade in (1.0, 0.5)))
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "400"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_each_takes_less_than_15_lines() -> None:
    functions = [node for node in ast.parse(OWN).body if isinstance(node, ast.FunctionDef)]
    lines = [(node.end_lineno or 0) - node.decorator_list[0].lineno + 1 for node in functions]
    assert len(lines) == 5
    assert max(lines) < 15


@pytest.mark.usefixtures("own")
def test_help_lists_them() -> None:
    train, score = run("train", "--help"), run("score", "--help")
    lines = {name: line for name in NAMES for line in (score + train).splitlines() if f"--{name} " in line}
    assert all(NAMES[name] in lines[name] for name in NAMES), lines


@pytest.mark.usefixtures("own")
def test_a_log_of_ones_own_format_is_scored_by_ones_own_signal(log: Path) -> None:
    found = json.loads(run("score", log, "--signal", "halved", "--json"))
    assert (found["signal"], found["margin"], found["calls"]) == ("halved", 0.1, 2)
    assert found["deltah/reduction_rate"] == 1.0
    assert "half" in run("score", log, "--signal", "my_own:halved", "--format", "my_own:read_mine")
    signal = deltah.score(next(iter(deltah.read_traces(log))), "halved")
    assert (signal.value.tolist(), signal.unit, signal.verdicts) == ([-1.0], "nats", (deltah.Verdict.REDUCED,))


@pytest.mark.usefixtures("own")
def test_workers_know_what_the_user_registered(log: Path) -> None:
    more = log.with_name("more.jsonl")
    more.write_bytes(log.read_bytes())
    found = json.loads(run("score", log, more, "--signal", "halved", "--format", "mine", "--json", "--workers", 2))
    assert (found["calls"], found["deltah/reduction_rate"]) == (4, 1.0)


@pytest.mark.usefixtures("own")
def test_the_study_knows_the_signal(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [make_trajectory([[h] for h in rng.random(3)], id=str(i), outcome=float(i % 2)) for i in range(30)]
    deltah.write_traces(tmp_path / "t.jsonl", rows)
    run("study", tmp_path / "t.jsonl", "--out", tmp_path / "study.json", "--resamples", 100)
    found = json.loads((tmp_path / "study.json").read_text())
    assert {"delta_h", "halved"} <= {row["signal"] for row in found["associations"]}


def test_a_task_names_the_grader_and_a_run_the_tool(own: ModuleType, tmp_path: Path) -> None:
    task = Task(id="t", question="?", golden_answers=("Oslo",), kind="prefix")
    assert grade(task, "<answer>Oslofjord</answer>") == (1.0, "Oslofjord")
    (tmp_path / "tasks.jsonl").write_text('{"question": "?", "answer": "Oslo", "kind": "my_own:prefix"}\n')
    assert deltah.tasks.read_tasks(tmp_path / "tasks.jsonl")[0].kind == "my_own:prefix"
    assert build_tools(["shout", "python"], ToolConfig())[0] is own.shout


@pytest.mark.usefixtures("own")
def test_a_training_step_pays_by_ones_own_reward(tmp_path: Path) -> None:
    """Two right and two wrong rollouts, one call in each pair: the tokens that issued it get its price less."""
    pytest.importorskip("trl")
    from engines.trl_fixtures import call, make_trainer

    north, south = (f" Is it {x} {call(x, name='shout', argument='text')}<|end|>" for x in ("north", "south"))
    scripts = [[north, " Yes<|end|>"], [" Yes<|end|>"], [south, " No<|end|>"], [" No<|end|>"]]
    seen: dict[str, Any] = {}
    trainer = make_trainer(
        tmp_path,
        scripts,
        reward=deltah.RewardConfig("priced", price=0.25),
        signal=deltah.SignalConfig(name="halved"),
        tools=build_tools(["shout"], ToolConfig()),
        on_trajectories=lambda rows, signals, *_: seen.update(rows=rows, signals=signals),
    )
    original = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: seen.update(batch=inputs) or original(model, inputs)
    trainer.train()
    assert {s.name for s in seen["signals"]} == {"halved"}
    assert [c.result for t in seen["rows"] for c in t.calls] == ["NORTH", "SOUTH"]
    found = {tuple(sorted(set(row.tolist()) - {0.0})) for row in seen["batch"]["advantages"]}
    assert found == {(0.25, 0.5), (0.5,), (-0.75, -0.5), (-0.5,)}


def test_an_installed_plugin_stands_in_the_help(tmp_path: Path) -> None:
    """Its package names the module under the entry point group `deltah.plugins`."""
    (tmp_path / "my_own.py").write_text(OWN)
    info = tmp_path / "my_own-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-own\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[deltah.plugins]\nmine = my_own\n")
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    shown = subprocess.run(
        [sys.executable, "-m", "deltah", "train", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "200"},
    ).stdout
    assert all(name in shown for name in ("halved", "priced", "shout"))

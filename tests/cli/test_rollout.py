"""`deltah rollout`: the target is checked first, nothing written is lost, an interrupted command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from builders import make_trajectory
from click.testing import Result
from typer.testing import CliRunner

pytest.importorskip("trl")

from deltah.cli.app import app
from deltah.core.types import Trajectory
from deltah.engines.config import RolloutConfig
from deltah.engines.trl import rollout as engine
from deltah.runs import RunDirectory
from deltah.tasks import Task
from deltah.traces import read_traces

ROOT = Path(__file__).parents[2]


class Agent:
    """Stands in for a model: counts its sittings, and is interrupted after so many trajectories."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.stop_after = 10**9
        self.made = 0

    def rollout(
        self, config: RolloutConfig, tasks: Sequence[Task], *, greedy: bool = False, samples: int = 1, start: int = 0
    ) -> Iterator[tuple[Trajectory, None]]:
        self.seeds.append(config.seed)
        for task, k in [(task, k) for task in tasks for k in range(samples)][start:]:
            if self.made == self.stop_after:
                raise KeyboardInterrupt
            self.made += 1
            entropies = [[float(self.made)], [float(greedy)]]
            yield make_trajectory(entropies, id=f"{task.id}/{k}", question=task.question), None


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Agent:
    agent = Agent()
    monkeypatch.setattr(engine, "rollout", agent.rollout)
    return agent


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps({"id": f"t{i}", "question": f"q{i}?", "answer": "a"}) + "\n" for i in range(3)))
    return path


def run(tasks: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["rollout", "--tasks", str(tasks), "--out", str(out), "--samples", "4", *options])


def ids(path: Path) -> list[str]:
    return [t.id for t in read_traces(path)]


ALL = [f"t{i}/{k}" for i in range(3) for k in range(4)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.jsonl.gz", "a.parquet"])
@pytest.mark.parametrize("stop_after", [0, 1, 4, 6, 11])
def test_an_interrupted_rollout_goes_on_where_it_was(
    agent: Agent, tasks: Path, tmp_path: Path, name: str, stop_after: int
) -> None:
    out, agent.stop_after = tmp_path / name, stop_after
    assert run(tasks, out).exit_code == 130
    assert not out.exists()
    partial = tmp_path / f"{name}.partial"
    assert partial.exists() == (stop_after > 0)  # what never started leaves nothing
    if stop_after:
        assert ids(partial / "partial.jsonl") == ALL[:stop_after]
    agent.stop_after = 10**9
    done = run(tasks, out)
    assert done.exit_code == 0, done.output
    assert ids(out) == ALL
    assert agent.made == len(ALL)  # nothing was made twice
    assert [t.entropy[4] for t in read_traces(out)] == list(range(1, 13))
    assert not partial.exists()
    assert len(set(agent.seeds[stop_after == 0 :])) == len(agent.seeds[stop_after == 0 :])


def test_a_line_cut_off_by_a_kill_is_made_again(agent: Agent, tasks: Path, tmp_path: Path) -> None:
    agent.stop_after = 6
    run(tasks, tmp_path / "a.jsonl")
    partial = tmp_path / "a.jsonl.partial" / "partial.jsonl"
    partial.write_bytes(partial.read_bytes()[:-40])
    agent.stop_after = 10**9
    assert run(tasks, tmp_path / "a.jsonl").exit_code == 0
    assert ids(tmp_path / "a.jsonl") == ALL
    assert agent.made == len(ALL) + 1


@pytest.mark.parametrize(("options", "name"), [((), "sampled"), (("--greedy",), "greedy")])
def test_a_directory_becomes_a_run(
    agent: Agent, tasks: Path, tmp_path: Path, options: tuple[str, ...], name: str
) -> None:
    out, agent.stop_after = tmp_path / "run", 5
    assert run(tasks, out, *options).exit_code == 130
    assert (out / "partial.jsonl").exists()
    agent.stop_after = 10**9
    assert run(tasks, out, *options).exit_code == 0
    assert ids(out / "eval" / f"{name}.jsonl.zst") == ALL
    manifest = json.loads((out / "run.json").read_text())
    assert manifest["command"] == "rollout"
    assert manifest["config"]["samples"] == 4
    assert manifest["config"]["rollout"]["model"] == "lab"
    assert sorted(path.name for path in out.iterdir()) == [".lock", "eval", "result.json", "run.json", "status.json"]
    assert RunDirectory(out).status == {"phase": "done", "done": len(ALL), "total": len(ALL)}
    sittings = len(agent.seeds)
    again = run(tasks, out, *options)
    assert (again.exit_code, len(agent.seeds)) == (0, sittings)
    report = CliRunner().invoke(app, ["report", str(out)])
    assert report.exit_code == 0, report.output


def test_a_finished_file_is_replaced_when_the_new_one_is_whole(agent: Agent, tasks: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    run(tasks, out)
    before, agent.stop_after = out.read_bytes(), agent.made + 2
    assert run(tasks, out).exit_code == 130
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("tasks.jsonl/a.jsonl", "a.jsonl: Not a directory; choose another place"),
        ("tasks.jsonl/deeper/a.jsonl", "Not a directory; choose another place"),
        ("folder.jsonl", "folder.jsonl is a folder; expected the name of a file"),
        ("full", "full exists and is not a run of deltah"),
        ("taken.jsonl", "taken.jsonl.partial: File exists; choose another --out"),
    ],
)
def test_a_wrong_target_is_refused_before_any_work(
    agent: Agent, tasks: Path, tmp_path: Path, out: str, message: str
) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    (tmp_path / "taken.jsonl.partial").write_text("something else")
    tasks.write_text("")  # even the task file is not read yet
    result = run(tasks, tmp_path / out)
    assert message in str(result.exception)
    assert type(result.exception).__name__ in ("ConfigError", "DataError")
    assert agent.seeds == []


def test_another_configuration_is_refused_and_named(agent: Agent, tasks: Path, tmp_path: Path) -> None:
    agent.stop_after = 3
    run(tasks, tmp_path / "a.jsonl")
    result = run(tasks, tmp_path / "a.jsonl", "--greedy")
    assert "greedy: False then, True now" in str(result.exception)
    assert agent.made == 3


def test_a_task_file_that_changed_in_between_is_refused(agent: Agent, tasks: Path, tmp_path: Path) -> None:
    agent.stop_after = 6
    run(tasks, tmp_path / "a.jsonl")
    tasks.write_text(tasks.read_text().replace("q1?", "another?"))
    result = run(tasks, tmp_path / "a.jsonl")
    assert "trajectory 5 answers 'q1?' (t1/0), which is not what the task file asks there now" in str(result.exception)


def test_the_first_sitting_uses_the_seed_as_given(agent: Agent, tasks: Path, tmp_path: Path) -> None:
    run(tasks, tmp_path / "a.jsonl", "--seed", "7")
    assert agent.seeds == [7]


@pytest.mark.slow
def test_a_killed_rollout_of_the_lab_goes_on(tmp_path: Path) -> None:
    from deltah.lab.demo import write_world

    write_world(tmp_path / "world", seed=0, eval_tasks=70)  # more than one batch
    split, out = tmp_path / "world" / "eval", tmp_path / "a.jsonl.zst"
    command = [sys.executable, "-m", "deltah", "rollout", "--tasks", str(split / "tasks.jsonl"), "--out", str(out)]
    command += ["--corpus", str(split / "corpus.jsonl"), "--set", "max_completion_length=120"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    partial = tmp_path / "a.jsonl.zst.partial" / "partial.jsonl"
    deadline = time.monotonic() + 180
    while not (partial.exists() and partial.read_bytes().count(b"\n") >= 64) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = list(read_traces(partial))
    assert kept, process.stdout
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"continuing after {len(kept)} of 70" in done.stdout
    whole = list(read_traces(out))
    assert [t.id.rpartition("-")[2] for t in whole] == [f"{i:05d}/0" for i in range(70)]
    assert [t.entropy.tobytes() for t in whole[: len(kept)]] == [t.entropy.tobytes() for t in kept]


def test_a_second_rollout_replaces_its_traces_and_no_other_file(agent: Agent, tasks: Path, tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl.zst", "c.parquet"):
        for _ in range(2):
            assert run(tasks, tmp_path / name).exit_code == 0
        assert len(list(read_traces(tmp_path / name))) == agent.made // 2
        agent.made = 0
    before, foreign = tasks.read_bytes(), tmp_path / "grades.jsonl"
    foreign.write_text('{"id": "q1", "score": 1}\n')
    for out, why in ((tasks, "which is read"), (foreign, "which this command did not write")):
        assert why in str(run(tasks, out).exception)
    assert (agent.made, tasks.read_bytes()) == (0, before)
    assert run(tasks, foreign, "--force").exit_code == 0
    assert len(list(read_traces(foreign))) == agent.made

"""What the evaluation asks, counted by hand, as the docs state it, and as many questions as were asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltah.lab import demo
from deltah.lab.demo import EVAL_TASKS, composition, write_world
from deltah.lab.world import Split, World
from deltah.report.data import ArmData, ReportData
from deltah.tasks import read_tasks


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world")
    write_world(path, seed=0)
    return path


def rows(path: Path, *facts: tuple[str, bool, list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tasks = [
        {"id": str(i), "question": q, "answer": "x", "supporting": ids, "metadata": {"needs_tools": needs}}
        for i, (q, needs, ids) in enumerate(facts)
    ]
    path.write_text("".join(json.dumps(task) + "\n" for task in tasks))


def test_questions_are_counted_by_what_training_saw(tmp_path: Path) -> None:
    rows(tmp_path / "train" / "tasks.jsonl", ("known?", False, ["a"]), ("1 plus 2?", False, []))
    (tmp_path / "train" / "corpus.jsonl").write_text('{"id": "a", "contents": "A is known."}\n')
    asked = [
        ("known?", False, ["a"]),
        ("fresh?", True, ["b"]),
        ("fresh?", True, ["b"]),
        ("345 plus 20?", True, []),
        ("fresh, then known?", True, ["c", "a"]),
    ]
    rows(tmp_path / "eval" / "tasks.jsonl", *asked)
    assert composition(tmp_path) == (
        "5 questions (4 different): 3 name an entity unseen in training, 1 need no tool, "
        "1 stand word for word among the training questions"
    )
    assert composition(tmp_path, limit=2).startswith("2 questions (2 different): 1 name")


def test_unseen_names_are_in_no_cold_start_world_either(shipped: Path) -> None:
    world = World(1, Split.EVAL)
    trained = {name for names in World(0, Split.TRAIN).new.values() for name in names} | world.known_names
    questions = [json.loads(line) for line in (shipped / "eval" / "tasks.jsonl").read_text().splitlines()]
    fresh = [name for names in world.new.values() for name in names]
    named = sum(any(name in question["question"] for name in fresh) for question in questions)
    assert f" {named} name an entity unseen in training" in composition(shipped)
    assert not trained.intersection(fresh)


def test_the_first_questions_do_not_depend_on_their_number(shipped: Path, tmp_path: Path) -> None:
    write_world(tmp_path, seed=0, eval_tasks=250)
    more = (tmp_path / "eval" / "tasks.jsonl").read_text().splitlines()
    assert len(more) == 250
    assert more[:200] == (shipped / "eval" / "tasks.jsonl").read_text().splitlines()


@pytest.mark.parametrize("asked", [10, 500])
def test_a_demo_asks_as_many_questions_as_it_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    pytest.importorskip("trl")

    def nothing(*arguments: Any) -> None:
        """No process is started."""

    def empty(path: Path, **options: Any) -> ArmData:
        return ArmData(name=path.name)

    monkeypatch.setattr(demo, "_run_all", nothing)
    monkeypatch.setattr(demo, "load_arm", empty)
    monkeypatch.setattr(demo, "write_report", nothing)
    data: ReportData = demo.run_demo(demo.DemoConfig(arms=("sparse",), eval_tasks=asked), tmp_path / "demo")
    assert data.facts["evaluation"].startswith(f"{asked} questions")
    lines = (tmp_path / "demo" / "world" / "eval" / "tasks.jsonl").read_text().splitlines()
    assert len(lines) == asked
    config = json.loads((tmp_path / "demo" / "logs" / "start.json").read_text())
    assert config["eval"]["limit"] == asked


def test_worlds_of_different_seeds_share_no_question(tmp_path: Path) -> None:
    for seed in (3, 4):
        write_world(tmp_path / str(seed), seed=seed)
    written = [{task.id for task in read_tasks(tmp_path / seed / "eval" / "tasks.jsonl")} for seed in ("3", "4")]
    assert len(written[0]) == EVAL_TASKS
    assert not written[0] & written[1]

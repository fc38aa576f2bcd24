"""Outcomes from a second file, and from a log's own gold answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltah.calls.grading import Answers, graded, grader_of, outcome_title
from deltah.core.types import Segment, SegmentKind, Trajectory
from deltah.errors import DataError


def made(name: str = "q7/0", **fields: Any) -> Trajectory:
    segments = (Segment(kind=SegmentKind.REASONING, start=0, stop=1, turn=0),)
    return Trajectory(id=name, segments=segments, **{"prediction": "The answer is Port Anselm.", **fields})


def answers(tmp_path: Path, *rows: dict[str, Any]) -> Answers:
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Answers(path)


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ({"id": "q7/0", "score": 0.25}, {}),
        ({"id": "q7", "outcome": 0.25}, {}),
        ({"trajectory": "g", "score": 0.25}, {"group_id": "g"}),
        ({"id": 7, "score": 0.25}, {"metadata": {"task_id": 7}}),
        ({"question": "Where? ", "score": 0.25}, {"question": "Where?"}),
    ],
)
def test_a_grade_is_found_by_id_group_task_or_question(
    tmp_path: Path, row: dict[str, Any], fields: dict[str, Any]
) -> None:
    table = answers(tmp_path, {"id": "other", "score": 1}, row)
    found, matched = table.apply(made(**fields))
    assert (found.outcome, matched) == (0.25, True)
    other, matched = table.apply(made("none"))
    assert (other.outcome, matched) == (None, False)
    assert table.n_rows == 2


def test_gold_answers_are_graded(tmp_path: Path) -> None:
    table = answers(
        tmp_path,
        {"id": "q7", "golden_answers": ["Port Anselm", "Anselm"]},
        {"id": "q8", "answer": "some steps #### 42", "hops": 2},
    )
    found, _ = table.apply(made())
    assert (found.outcome, found.golden_answers) == (1.0, ("Port Anselm", "Anselm"))
    pytest.importorskip("math_verify")
    number, _ = table.apply(made("q8", prediction="so \\boxed{42}"))
    assert (number.outcome, number.metadata["hops"]) == (1.0, 2)
    assert [grader_of(t) for t in (found, number)] == ["qa", "math"]
    assert outcome_title({"qa", "math"}) == "outcome"


def test_only_what_deltah_graded_is_an_f1(tmp_path: Path) -> None:
    stated = made(outcome=0.5, golden_answers=("Port Anselm",))
    assert grader_of(graded(stated)) == "stated", "a log's own score stays its own"
    own = graded(made(golden_answers=("Port Anselm",)))
    assert (grader_of(own), outcome_title(["qa"])) == ("qa", "F1")
    again, _ = answers(tmp_path, {"id": "q7", "score": 0.25}).apply(own)
    assert (again.outcome, grader_of(again)) == (0.25, "stated")
    assert grader_of(made()) is None


def test_a_trajectory_without_a_final_answer_missed_it(tmp_path: Path) -> None:
    assert answers(tmp_path, {"id": "q7", "answer": "x"}).apply(made(prediction=None))[0].outcome == 0.0


def test_own_gold_answers_are_graded_unless_a_grade_stands() -> None:
    assert graded(made(golden_answers=("port anselm",))).outcome == 1.0
    assert graded(made(golden_answers=("port anselm",), outcome=0.5)).outcome == 0.5
    assert graded(made()).outcome is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no row"),
        ([{"score": 1}], ":1: no field 'id' or 'question'"),
        ([{"id": "a"}], ":1: neither a grade"),
        ([{"id": "a", "score": 3}], ":1: field 'score' is 3"),
        ([{"id": "a", "score": "high"}], "in \\[0, 1\\]"),
        ([{"id": "a", "score": 1}, {"id": "a", "score": 0}], ":2: id 'a' stands in an earlier row"),
        ([{"id": "a", "answer": []}], "empty list"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        answers(tmp_path, *rows)


@pytest.mark.parametrize("field", ["outcome", "score", "correct", "is_correct", "reward"])
def test_a_grade_has_the_names_that_it_has_in_logs(tmp_path: Path, field: str) -> None:
    graded_one, matched = answers(tmp_path, {"id": "a", field: 0}).apply(made("a", golden_answers=("x",)))
    assert (graded_one.outcome, matched) == (0.0, True)


def test_a_grade_of_a_conversation_is_not_one_of_its_abandoned_branches(tmp_path: Path) -> None:
    table = answers(
        tmp_path, {"id": "c1", "score": 1}, {"id": "c2/branch-1", "score": 0.5}, {"id": "q7", "answer": "x"}
    )
    assert table.apply(made("c1"))[0].outcome == 1.0
    assert table.apply(made("c1/branch-1")) == (made("c1/branch-1"), False)
    assert table.apply(made("c2/branch-1"))[0].outcome == 0.5
    gold, matched = table.apply(made("q7/branch-1", prediction="y"))
    assert (gold.outcome, matched) == (0.0, True), "a gold answer grades what the branch itself says"

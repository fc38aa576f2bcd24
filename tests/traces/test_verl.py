"""verl rollout dumps, written by the code path of verl's own writer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from deltah.core.types import CallStatus, Estimator, SpanQuality, StopReason
from deltah.errors import DataError
from deltah.traces import read_traces, write_traces
from deltah.traces.importing import UNFIT_OUTCOME

from .chat import read_as
from .test_record import assert_same

INPUT = "system\nUse tools.\nuser\nWhat is 200000 and its tenth?\nassistant\n"
OUTPUT = (
    "<think>\nThe bonus is a tenth.\n</think>\n"
    '<tool_call>\n{"name": "code_interpreter", "arguments": {"code": "print(220000)"}}\n</tool_call>\n'
    "user\n<tool_response>\n220000\n</tool_response>\nassistant\n"
    '<tool_call>\n{"name": "code_interpreter", "arguments": {"code": "1/0"}}\n</tool_call>\n'
    "user\n<tool_response>\nError: division by zero\n</tool_response>\nassistant\n"
    "<think>\nSo it is.\n</think>\n\n#### 220000"
)


def write_generations(path: Path, base: dict[str, list[Any]], extra: dict[str, list[Any]], step: int) -> None:
    """What verl does with columns of n values: extra columns of another length are dropped, text is not escaped."""
    n = len(base["input"])
    columns = base | {"step": [step] * n} | {k: v for k, v in extra.items() if len(v) == n}
    lines = [json.dumps({k: v[i] for k, v in columns.items()}, ensure_ascii=False) for i in range(n)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def row(**fields: Any) -> bytes:
    return json.dumps({"input": INPUT, "output": OUTPUT, "score": 1.0, "step": 1} | fields).encode()


def read(**fields: Any) -> Any:
    return read_as("verl", row(**fields))


def test_a_dump_of_the_writer(tmp_path: Path) -> None:
    base = {"input": [INPUT, "user\nÄ?\nassistant\n"], "output": [OUTPUT, "B"], "gts": ["220000", ["a", "b"]]}
    extra = {"acc": [True, False], "num_turns": [6, 2], "dropped": [1]}
    write_generations(tmp_path / "7.jsonl", base | {"score": [-1.0, math.nan]}, extra, step=7)
    first, second = (
        read_as("verl", line, file="7.jsonl", number=i)
        for i, line in enumerate((tmp_path / "7.jsonl").read_bytes().splitlines(), start=1)
    )
    assert [(s.kind.value, s.turn, s.text) for s in first.segments] == [
        ("prompt", 0, "Use tools."),
        ("prompt", 0, "What is 200000 and its tenth?"),
        ("reasoning", 0, "The bonus is a tenth."),
        ("call", 0, 'code_interpreter({"code": "print(220000)"})'),
        ("result", 0, "220000"),
        ("call", 1, 'code_interpreter({"code": "1/0"})'),
        ("result", 1, "Error: division by zero"),
        ("reasoning", 2, "So it is."),
        ("reasoning", 2, "#### 220000"),
    ]
    assert [(c.name, c.arguments, c.status) for c in first.calls] == [
        ("code_interpreter", '{"code": "print(220000)"}', CallStatus.OK),
        ("code_interpreter", '{"code": "1/0"}', CallStatus.ERROR),
    ]
    assert (first.id, first.question, first.prediction) == ("7.jsonl:1", "What is 200000 and its tenth?", "#### 220000")
    assert (first.outcome, first.golden_answers, first.stop_reason) == (1.0, ("220000",), StopReason.ANSWERED)
    assert (first.estimator, first.spans, first.entropy) == (Estimator.NONE, SpanQuality.APPROXIMATE, None)
    assert dict(first.metadata) == {"score": -1.0, "step": 7, "acc": True, "num_turns": 6}
    assert (second.question, second.golden_answers, second.outcome) == ("Ä?", ("a", "b"), 0.0)


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({"score": 0.5}, 0.5),
        ({"score": True}, 1.0),
        ({"score": 1.2}, None),
        ({"score": -1}, None),
        ({"score": None}, None),
        ({"score": math.nan}, None),
        ({"score": math.inf}, None),
        ({"score": 0.2, "acc": 1.0}, 1.0),
        ({"score": 0.2, "acc": "True"}, 1.0),
        ({"score": 0.2, "acc": "often"}, 0.2),
    ],
)
def test_outcome(fields: dict[str, Any], outcome: float | None) -> None:
    trajectory = read(**fields)
    assert trajectory.outcome == outcome
    assert (UNFIT_OUTCOME in trajectory.metadata) == (fields["score"] in (1.2, -1))


@pytest.mark.parametrize(
    ("gts", "expected"),
    [
        ("4", ("4",)),
        (4, ("4",)),
        (None, ()),
        (["4", "four"], ("4", "four")),
        ({"target": ["x"]}, ("x",)),
        ({"a": 1}, ('{"a": 1}',)),
    ],
)
def test_ground_truths(gts: Any, expected: tuple[str, ...]) -> None:
    assert read(gts=gts).golden_answers == expected


def test_identity_and_groups() -> None:
    assert read(uid="ab_c_3_0").id == "ab_c_3_0"
    assert read(uid="ab_c_3_0").group_id == read(uid="ab_c_4_1").group_id == "ab_c"
    assert (read(uid="0f-1a").id, read(uid="0f-1a").group_id) == ("d:1", "0f-1a")
    assert read(request_id="r").id == "r"
    assert read().group_id == read(output="x").group_id
    assert len({read().group_id, read(step=2).group_id, read(input="other").group_id}) == 3


def test_a_prompt_that_opened_the_thinking() -> None:
    trajectory = read(input="user\nQ\nassistant\n<think>\n", output="hm\n</think>\n\nA")
    assert [s.text for s in trajectory.segments if s.kind.value == "reasoning"] == ["hm", "A"]
    assert trajectory.prediction == "A"


def test_survives_our_own_record(tmp_path: Path) -> None:
    trajectory = read(score=math.nan, gts=["a"], extra=2**80)
    assert trajectory.metadata["extra"] == str(2**80) or isinstance(trajectory.metadata["extra"], float)
    write_traces(tmp_path / "t.jsonl", [trajectory])
    [again] = read_traces(tmp_path / "t.jsonl", strict=True)
    assert_same(again, trajectory)


@pytest.mark.parametrize("field", ["input", "output", "score", "step"])
def test_a_missing_field_is_named(field: str) -> None:
    whole = json.loads(row())
    del whole[field]
    with pytest.raises(DataError, match=field):
        read_as("verl", json.dumps(whole).encode())


@pytest.mark.parametrize("fields", [{"input": 1}, {"output": ["a"]}, {"score": "high"}, {"step": "one"}])
def test_a_wrong_type_is_named(fields: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=f"field {next(iter(fields))}"):
        read(**fields)


def test_hostile_text_stays_text() -> None:
    text = "\ud800<script>\x1b[31m\u202e\x00" + "x" * 200_000
    trajectory = read(input=text, output=text)
    assert trajectory.question == text.replace("\ud800", "\ufffd")

"""TRL completion logs: files that the stock GRPOTrainer wrote (`data/make_trl.py`), then single rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from deltah.core.types import CallStatus, Estimator, SpanQuality, StopReason, Trajectory
from deltah.errors import DataError
from deltah.traces import read_traces, write_traces
from deltah.traces.files import table_rows

from .chat import read_as
from .test_record import assert_same

DATA = Path(__file__).parent / "data"


def real(name: str) -> list[Trajectory]:
    rows = list(table_rows(DATA / name))
    assert all(row.damage is None for row in rows)
    return [read_as("trl", row.data, file=name, number=row.number) for row in rows]


def row(**fields: Any) -> bytes:
    base: dict[str, Any] = {"step": 1, "prompt": "Where?", "completion": "here", "advantage": 0.0}
    return json.dumps(base | fields).encode()


def read(**fields: Any) -> Trajectory:
    return read_as("trl", row(**fields))


def test_real_tool_calls() -> None:
    first, *others = real("trl.parquet")
    assert [(s.kind.value, s.turn, s.text) for s in first.segments] == [
        ("prompt", 0, "Where is it ?"),
        ("reasoning", 0, "Is it north"),
        ("call", 0, 'search({"query":" a"})'),
        ("call", 0, 'search({"query":" b"})'),
        ("result", 0, " Port a"),
        ("result", 0, " Port b"),
        ("reasoning", 1, "maybe so"),
        ("call", 1, 'search({"query":" boom"})'),
        ("result", 1, "{'error': 'boom'}"),
        ("reasoning", 2, "Yes"),
    ]
    assert [(c.id, c.result, c.status) for c in first.calls] == [
        ("call-0", " Port a", CallStatus.OK),
        ("call-1", " Port b", CallStatus.OK),
        ("call-2", "{'error': 'boom'}", CallStatus.ERROR),
    ]
    assert [t.outcome for t in (first, *others)] == [1.0, 0.5, 0.0, 1.0]
    assert [t.n_calls for t in (first, *others)] == [3, 1, 0, 2]
    assert [(c.name, c.arguments) for c in others[2].calls] == [
        ("lookup", '{"key":" d"}'),
        ("search", '{"query":" e"}'),
    ]
    assert {t.group_id for t in others} == {first.group_id}
    assert (first.id, first.question, first.prediction) == ("trl.parquet:1", "Where is it ?", "Yes")
    assert (first.golden_answers, first.stop_reason) == (("Yes",), StopReason.ANSWERED)
    assert (first.estimator, first.spans) == (Estimator.NONE, SpanQuality.APPROXIMATE)
    assert set(first.metadata) == {"step", "outcome", "length", "solution", "advantage"}


def test_real_text_completions() -> None:
    assert [(t.question, t.prediction, t.outcome) for t in real("trl_text.parquet")] == [
        ("Where is it ?", "maybe so", None),
        ("Where is it ?", "Yes", 1.0),
    ]


def test_survives_our_own_record(tmp_path: Path) -> None:
    trajectories = real("trl.parquet") + real("trl_text.parquet")
    write_traces(tmp_path / "t.jsonl", trajectories)
    for again, trajectory in zip(read_traces(tmp_path / "t.jsonl", strict=True), trajectories, strict=True):
        assert_same(again, trajectory)


def test_results_of_async_tools_come_last_and_are_matched_by_name() -> None:
    calls = [{"type": "function", "function": {"name": name, "arguments": {}}} for name in ("slow", "fast", "fast")]
    results = [
        {"role": "tool", "name": name, "content": text} for name, text in (("fast", "1"), ("fast", "2"), ("slow", "3"))
    ]
    completion = [{"role": "assistant", "content": "", "tool_calls": calls}, *results]
    assert [(c.name, c.result) for c in read(completion=completion).calls] == [
        ("slow", "3"),
        ("fast", "1"),
        ("fast", "2"),
    ]


def test_calls_in_the_text_of_a_message() -> None:
    content = '<think>\nhm\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {"a": null}}\n</tool_call>'
    completion = [{"role": "assistant", "content": content}, {"role": "tool", "content": "r"}]
    trajectory = read(completion=completion)
    assert [(c.name, c.arguments, c.result) for c in trajectory.calls] == [("f", '{"a": null}', "r")]
    assert [s.text for s in trajectory.segments if s.kind.value == "reasoning"] == ["hm"]


def test_a_prompt_with_turns_of_its_own_has_none_of_ours() -> None:
    prompt = [{"role": role, "content": role} for role in ("system", "user", "assistant", "tool", "user")]
    trajectory = read(prompt=prompt)
    assert [(s.kind.value, s.text) for s in trajectory.segments[:5]] == [("prompt", m["role"]) for m in prompt]
    assert (trajectory.n_calls, trajectory.question) == (0, "user")


@pytest.mark.parametrize(
    ("columns", "outcome"),
    [
        ({}, None),
        ({"my_reward": 0.5}, 0.5),
        ({"my_reward": 2.0}, None),
        ({"my_reward": None}, None),
        ({"a": 1.0, "b": 0.0}, None),
        ({"a": 1.0, "outcome": 0.25}, 0.25),
        ({"accuracy_reward": 1.0, "format": 0.0}, 1.0),
        ({"outcome": math.nan}, None),
        ({"my_reward": 1.0, "note": "text"}, 1.0),
        ({"flag": True, "my_reward": 0.5}, 0.5),
    ],
)
def test_outcome(columns: dict[str, Any], outcome: float | None) -> None:
    assert read(**columns).outcome == outcome


def test_groups_are_prompts_of_one_step() -> None:
    assert read().group_id == read(completion="x").group_id
    assert len({read().group_id, read(step=2).group_id, read(prompt="Who?").group_id}) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": 1}, "field prompt"),
        ({"completion": [{"content": "x"}]}, r"field completion\[0\].*role"),
        ({"completion": []}, "assistant"),
        ({"completion": [{"role": "user", "content": "x"}]}, "assistant"),
        ({"step": "one"}, "field step"),
        ({"completion": [{"role": "assistant", "tool_calls": [{"function": {"name": 1}}]}]}, "name"),
    ],
)
def test_what_does_not_fit_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(**fields)


@pytest.mark.parametrize("field", ["prompt", "completion"])
def test_a_missing_field_is_named(field: str) -> None:
    whole = json.loads(row())
    del whole[field]
    with pytest.raises(DataError, match=field):
        read_as("trl", json.dumps(whole).encode())


@pytest.mark.parametrize("damage", ["cut", "hole", "none"])
def test_a_damaged_table_is_one_problem(tmp_path: Path, damage: str) -> None:
    data, path = (DATA / "trl.parquet").read_bytes(), tmp_path / "completions[1]*.parquet"
    if damage != "none":
        data = data[:-20] if damage == "cut" else data[:100] + bytes(200) + data[300:]
    path.write_bytes(data)
    rows = list(table_rows(path))
    assert [row.number for row in rows if row.damage is not None] == ([] if damage == "none" else [1])
    assert len(rows) == (4 if damage == "none" else 1)


def test_hostile_text_stays_text() -> None:
    text = "\ud800<script>\x1b[31m\u202e\x00" + "x" * 200_000
    assert read(completion=[{"role": "assistant", "content": text}]).prediction == text.replace("\ud800", "\ufffd")

"""Inspect samples: real logs of inspect_ai, then one sample at a time against numbers by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltah.core.types import CallStatus, Estimator, SpanQuality, StopReason, Trajectory
from deltah.errors import DataError
from deltah.traces import read_traces, write_traces

from .chat import eval_samples, read_as, token
from .test_record import assert_same

DATA = Path(__file__).parent / "data"
LONG = "Answer with the number alone. " * 5


def real(name: str, **options: Any) -> dict[str, Trajectory]:
    members = list(eval_samples(DATA / name))
    assert all(member.damage is None for member in members)
    trajectories = [read_as("inspect", member.data, **options) for member in members]
    return {trajectory.id: trajectory for trajectory in trajectories}


def assistant(text: Any, id: str | None = "m", **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "id": id} | fields


def model_event(message: dict[str, Any], tokens: list[dict[str, Any]] | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"message": message, "stop_reason": "stop"} | ({} if tokens is None else {"logprobs": {"content": tokens}})
    return {"event": "model", "model": "a/b", "config": {}, "output": {"model": "b", "choices": [choice]}} | fields


def sample(*messages: dict[str, Any], **fields: Any) -> bytes:
    base = {"id": "s", "epoch": 1, "input": "Where?", "target": "here", "messages": list(messages)}
    return json.dumps(base | fields).encode()


def read(data: bytes, **options: Any) -> Trajectory:
    return read_as("inspect", data, **options)


@pytest.mark.parametrize(("name", "epochs"), [("inspect.eval", 2), ("inspect.json", 1)])
def test_real_log(name: str, epochs: int) -> None:
    trajectories = real(name, vocab_size=3)
    assert sorted(trajectories) == sorted(f"{id}/{n}" for id in ("anselm", "2") for n in range(1, epochs + 1))
    one, two = trajectories["anselm/1"], trajectories["2/1"]
    assert (one.group_id, one.question, one.prediction) == ("anselm", "How many people live in Port Anselm?", "12345")
    assert (one.golden_answers, one.outcome, one.model) == (("12345",), 1.0, "mockllm/model")
    assert (one.temperature, one.stop_reason, one.spans) == (1.0, StopReason.ANSWERED, SpanQuality.EXACT)
    assert [(s.kind.value, s.n_tokens, s.text) for s in one.segments] == [
        ("prompt", 0, LONG),
        ("prompt", 0, one.question),
        ("reasoning", 2, None),
        ("call", 0, 'population({"city":"Port Anselm"})'),
        ("result", 0, "Port Anselm has 12345 inhabitants."),
        ("reasoning", 1, None),
    ]
    # The third token's probability is known by subtraction, so the bounds meet: V = 3.
    assert one.estimator is Estimator.TOP_K
    by_hand = [1.5 * math.log(2), 1.5 * math.log(2), -0.9 * math.log(0.9) - 0.1 * math.log(0.05)]
    np.testing.assert_allclose(one.entropy, by_hand, atol=1e-4)
    assert two.outcome == 0.0
    assert two.golden_answers == ("1", "2")
    assert two.stop_reason is StopReason.LENGTH
    assert [(c.id, c.status, c.result) for c in two.calls] == [
        ("c2", CallStatus.ERROR, "no city of that name"),
        ("c3", CallStatus.OK, "Rome has 12345 inhabitants."),
    ]
    durations = [call.duration_s for t in trajectories.values() for call in t.calls]
    assert all(seconds is not None and 0 < seconds < 10 for seconds in durations)


def test_real_log_without_a_vocabulary_is_bounded_by_the_default_one() -> None:
    one = real("inspect.eval")["anselm/1"]
    assert one.entropy_upper is not None
    assert np.isfinite(one.entropy_upper[[0, 2]]).all()
    assert (one.metadata["vocab_size"], one.metadata["vocab_size_from"]) == (524_288, "default")


def test_survives_our_own_record(tmp_path: Path) -> None:
    trajectories = list(real("inspect.eval").values())
    write_traces(tmp_path / "t.jsonl", trajectories)
    for again, trajectory in zip(read_traces(tmp_path / "t.jsonl", strict=True), trajectories, strict=True):
        assert_same(again, trajectory)


def test_logprobs_belong_to_the_message_with_the_same_id() -> None:
    first, last = assistant("a", "m1"), assistant("b", "m2")
    grader = model_event(assistant("C", "g"), [token("C", (1.0, 0.0))])
    events = [model_event(last, [token("b", (1.0, 0.0))]), grader, model_event(first, [token("a", (0.5, 0.5))])]
    trajectory = read(sample(first, last, events=events), vocab_size=2)
    assert trajectory.estimator is Estimator.EXACT
    np.testing.assert_allclose(trajectory.entropy, [math.log(2), 0.0], atol=1e-9)


def test_the_samples_output_stands_in_for_a_missing_event() -> None:
    for id in ("m", None):
        last = assistant("b", id)
        output = model_event(last, [token("b", (0.5, 0.5))])["output"]
        trajectory = read(sample(assistant("a", "x"), last, output=output), vocab_size=2)
        np.testing.assert_allclose(trajectory.entropy, [math.log(2)], atol=1e-9)
    other = model_event(assistant("b", "other"), [token("b")])["output"]
    assert read(sample(assistant("b"), output=other)).entropy is None


def test_attachments_are_put_back() -> None:
    reference, attachments = "attachment://abc", {"abc": "long text"}
    call = {"id": "c", "function": "f", "arguments": {"q": [reference]}}
    tool = {"role": "tool", "content": [{"type": "text", "text": reference}], "tool_call_id": "c"}
    trajectory = read(
        sample(
            assistant(reference, tool_calls=[call]), tool, assistant("attachment://gone"),
            input=reference, attachments=attachments,
        )
    )  # fmt: skip
    assert trajectory.question == "long text"
    assert trajectory.calls[0].arguments == '{"q":["long text"]}'
    assert trajectory.calls[0].result == "long text"
    assert [s.text for s in trajectory.segments if s.kind.value == "reasoning"] == ["long text", "attachment://gone"]


def test_reasoning_parts_and_tools_that_the_provider_ran() -> None:
    parts = [
        {"type": "reasoning", "reasoning": "cipher", "summary": "thought", "redacted": True},
        {
            "type": "tool_use",
            "id": "w",
            "name": "web_search",
            "arguments": '{"q": 1}',
            "result": "hit",
            "tool_type": "x",
        },
        {"type": "text", "text": "done"},
        {"type": "image", "image": "data:..."},
    ]
    trajectory = read(sample(assistant(parts)))
    assert [(s.kind.value, s.text) for s in trajectory.segments] == [
        ("reasoning", "thought"), ("reasoning", "done[image]"), ("call", 'web_search({"q": 1})'), ("result", "hit"),
    ]  # fmt: skip
    assert [(c.id, c.name, c.arguments, c.result) for c in trajectory.calls] == [("w", "web_search", '{"q": 1}', "hit")]


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        ("C", 1.0), ("I", 0.0), ("P", 0.5), ("N", 0.0), ("Yes", 1.0), ("false", 0.0), ("0.25", 0.25), (0.75, 0.75),
        (True, 1.0), (1, 1.0), (7, None), (-0.1, None), (math.nan, None), ("nan", None), ("maybe", None), ([1], None),
        ({"a": 1}, None), (None, None), (10**40, None), ("1" * 5000, None),
    ],
)  # fmt: skip
def test_first_score_becomes_the_outcome(value: Any, outcome: float | None) -> None:
    scores = {"graded": {"value": value, "answer": "42"}, "other": {"value": 0.5}}
    trajectory = read(sample(assistant("text"), scores=scores, metadata={"level": 3, "deep": {"a": 1}}))
    assert trajectory.outcome == outcome
    assert trajectory.prediction == "42"
    assert trajectory.metadata["score/other"] == 0.5
    assert trajectory.metadata["level"] == 3
    assert "deep" not in trajectory.metadata


def test_duration_is_wall_time_of_the_tool_event_else_its_working_time() -> None:
    calls = [{"id": f"c{i}", "function": "f", "arguments": {}} for i in range(4)]
    results = [{"role": "tool", "content": "r", "tool_call_id": f"c{i}"} for i in range(4)]
    at = {"timestamp": "2026-01-01T00:00:00+00:00", "completed": "2026-01-01T00:00:02.500000Z", "working_time": 1.0}
    events = [
        {"event": "tool", "id": "c0", **at},
        {"event": "tool", "id": "c1", **at, "completed": None},
        {"event": "tool", "id": "c2", **at, "completed": "yesterday", "working_time": "long"},
        {"event": "sandbox", "id": "c3", "output": "text", **at},
    ]
    trajectory = read(sample(assistant("", tool_calls=calls), *results, events=events))
    assert [c.duration_s for c in trajectory.calls] == [2.5, 1.0, None, None]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, StopReason.ANSWERED),
        ({"limit": {"type": "message", "limit": 5}}, StopReason.LENGTH),
        ({"error": {"message": "boom"}}, StopReason.UNKNOWN),
    ],
)
def test_stop_reason(fields: dict[str, Any], expected: StopReason) -> None:
    assert read(sample(assistant("text"), **fields)).stop_reason is expected


def test_temperature_is_known_only_where_scaling_does_not_matter() -> None:
    def temperature(value: Any) -> float | None:
        message = assistant("b")
        event = model_event(message, [token("b", (0.5, 0.5))], config={"temperature": value})
        trajectory = read(sample(message, events=[event]))
        assert trajectory.metadata.get("sampling_temperature") == (value if isinstance(value, float) else None)
        return trajectory.temperature

    assert [temperature(value) for value in (1.0, 0.7, None, "hot")] == [1.0, None, None, None]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"id": 1}', "epoch"),
        (sample(assistant("a", tool_calls=[{"id": "c"}])), r"field messages\[0\].tool_calls\[0\].*function"),
        (sample(assistant("a"), target=1), "field target"),
        (sample({"role": "user", "content": "q"}), "no message of role 'assistant'"),
        (sample(assistant("a"), events=[model_event(assistant("a")) | {"output": 1}]), r"field events\[0\].output"),
        (sample(assistant("a"), events=[model_event(assistant("a"), [token("a") | {"logprob": "x"}])]), "logprob"),
        (sample(assistant("a"), events=[model_event(assistant("a"), [token("a") | {"logprob": 2.0}])]), "logprob 2"),
        (b"[]", "object"),
    ],
)
def test_what_does_not_fit_is_named(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(data)


def test_lone_surrogates_and_huge_text() -> None:
    text = "\ud800<script>\u202e" + "x" * 500_000
    call = {"id": "c", "function": "f", "arguments": {"q": text}}
    tool = {"role": "tool", "content": text, "tool_call_id": "c"}
    trajectory = read(sample(assistant(text, tool_calls=[call]), tool, assistant("done")))
    assert trajectory.calls[0].result == text.replace("\ud800", "\ufffd")

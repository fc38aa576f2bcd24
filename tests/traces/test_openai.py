"""The chat-log importer: segments, calls, entropies and servers' habits, computed by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltah.core.failures import is_error
from deltah.core.signals import Verdict, score
from deltah.core.types import CallStatus, Estimator, SegmentKind, SpanQuality, StopReason, Trajectory
from deltah.errors import DataError
from deltah.traces import read_traces, write_traces

from .chat import assistant, call, decode, line, result, token, user
from .test_record import assert_same

EVEN, SURE = (1 / 3, 1 / 3, 1 / 3), (1.0, 0.0, 0.0)


def read(messages: list[dict[str, Any]], **fields: Any) -> Trajectory:
    return decode(line(messages, **fields), default_id="default")


def shape(trajectory: Trajectory) -> list[tuple[str, int, int]]:
    return [(s.kind.value, s.n_tokens, s.turn) for s in trajectory.segments]


def qwen_turns() -> list[dict[str, Any]]:
    """Two turns as vLLM logs them: all sampled tokens, call and end of turn included."""
    first = [token("<think>", SURE), token("hm", EVEN), token(" so", (0.5, 0.25, 0.25)), token("</think>", SURE)]
    first += [token("\n\n", SURE), token("<tool_call>", SURE)]
    first += [token('{"name": "search", "arguments": {"query": "x"}}', EVEN), token("</tool_call>", SURE)]
    return [
        {"role": "system", "content": "Use tools."},
        user("Capital of France?"),
        assistant([*first, token("<|im_end|>", SURE)], tool_calls=[call()], reasoning_content="hm so"),
        result("Paris is the capital."),
        assistant([token("Par", (0.9, 0.05, 0.05)), token("is", SURE), token("<|im_end|>", SURE)], content="Paris"),
    ]


def test_two_turns_of_a_three_token_vocabulary_by_hand() -> None:
    trajectory = read(
        qwen_turns(), id=7, vocab_size=3, golden_answers=["Paris"], score=1, temperature=0.7, metadata={"split": "dev"}
    )
    assert shape(trajectory) == [
        ("prompt", 0, 0), ("prompt", 0, 0),
        ("control", 1, 0), ("reasoning", 2, 0), ("control", 2, 0), ("call", 3, 0), ("control", 1, 0),
        ("result", 0, 0),
        ("reasoning", 2, 1), ("control", 1, 1),
    ]  # fmt: skip
    assert (trajectory.id, trajectory.outcome, trajectory.golden_answers) == ("7", 1.0, ("Paris",))
    assert (trajectory.question, trajectory.prediction) == ("Capital of France?", "Paris")
    assert trajectory.stop_reason is StopReason.ANSWERED
    assert trajectory.spans is SpanQuality.EXACT
    assert trajectory.estimator is Estimator.EXACT
    assert trajectory.entropy is not None
    by_hand = [0, math.log(3), 1.5 * math.log(2), 0, 0, 0, math.log(3), 0, 0]
    last = -(0.9 * math.log(0.9) + 0.1 * math.log(0.05))
    np.testing.assert_allclose(trajectory.entropy, [*by_hand, last, 0, 0], atol=1e-9, rtol=0)
    [answered] = trajectory.calls
    assert (answered.name, answered.arguments) == ("search", '{"query": "x"}')
    assert (answered.id, answered.result, answered.status) == ("c1", "Paris is the capital.", CallStatus.OK)
    signal = score(trajectory)
    assert signal.value[0] == pytest.approx(last / 2 - (math.log(3) + 1.5 * math.log(2)) / 2, abs=1e-9)
    assert signal.verdicts == (Verdict.REDUCED,)


def test_a_score_on_another_scale_costs_the_outcome_alone() -> None:
    trajectory = read(qwen_turns(), score=85)
    assert (trajectory.n_calls, trajectory.outcome) == (1, None)
    assert trajectory.metadata["score_outside_0_1"] == 85.0


def test_import_survives_our_own_record(tmp_path: Path) -> None:
    trajectory = read(qwen_turns())
    write_traces(tmp_path / "t.jsonl", [trajectory])
    [again] = read_traces(tmp_path / "t.jsonl", strict=True)
    assert_same(again, trajectory)


def test_vocabulary_size_may_come_from_outside(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(line(qwen_turns()) + b"\n" + line(qwen_turns(), vocab_size=40))
    estimators = [t.estimator for t in read_traces(tmp_path / "log", vocab_size=3)]
    assert estimators == [Estimator.EXACT, Estimator.TOP_K]


def test_request_and_response_pair() -> None:
    *history, reply = qwen_turns()
    block = reply.pop("logprobs")
    pair = {
        "request": {"messages": history, "model": "m", "temperature": 0.7, "tools": []},
        "response": {
            "id": "chatcmpl-1",
            "model": "served",
            "choices": [{"index": 0, "message": reply, "logprobs": block, "finish_reason": "length"}, {}],
        },
        "logprobs_mode": "processed_logprobs",
    }
    trajectory = decode(json.dumps(pair).encode(), default_id="d")
    assert shape(trajectory) == shape(read(qwen_turns()))
    assert (trajectory.id, trajectory.model, trajectory.temperature) == ("chatcmpl-1", "served", 0.7)
    assert dict(trajectory.metadata) == {
        "sampling_temperature": 0.7, "logprobs_mode": "processed_logprobs", "n_choices": 2,
        "vocab_size": 524_288, "vocab_size_from": "default",
    }  # fmt: skip
    assert trajectory.stop_reason is StopReason.LENGTH
    assert trajectory.prediction is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"temperature": 0.7}, None),
        ({"temperature": 1}, 1.0),
        ({"temperature": 0.7, "logprobs_mode": "raw_logprobs"}, 1.0),
        ({"temperature": 0.7, "logprobs_mode": "processed_logprobs"}, 0.7),
        ({"temperature": 0, "logprobs_mode": "processed_logprobs"}, 1.0),
    ],
)
def test_temperature_is_that_of_the_reported_distribution(fields: dict[str, Any], expected: float | None) -> None:
    assert read([user(), assistant([token("a")])], **fields).temperature == expected


def test_logprobs_of_the_content_only() -> None:
    trajectory = read(
        [
            user(),
            assistant([token("look"), token(" up")], content="look up", tool_calls=[call(arguments={"q": 1})]),
            result("Error: no index"),
            assistant(None, content="I do not know"),
        ]
    )
    assert shape(trajectory) == [
        ("prompt", 0, 0), ("reasoning", 2, 0), ("call", 0, 0), ("result", 0, 0), ("reasoning", 0, 1)
    ]  # fmt: skip
    assert trajectory.segments[2].text == 'search({"q":1})'
    assert trajectory.spans is SpanQuality.EXACT
    assert trajectory.calls[0].status is CallStatus.ERROR
    assert trajectory.calls[0].arguments == '{"q":1}'
    assert score(trajectory).verdicts == (Verdict.UNDEFINED,)


def test_a_call_in_an_unknown_dialect_begins_where_the_visible_text_ends() -> None:
    trajectory = read([user(), assistant([token("see"), token(" @@search x@@")], content="see", tool_calls=[call()])])
    assert trajectory.spans is SpanQuality.EXACT
    assert [s.kind.value for s in trajectory.segments if s.n_tokens] == ["reasoning", "call"]
    assert trajectory.stop_reason is StopReason.UNANSWERED_CALL


def test_reasoning_without_logprobs_is_said() -> None:
    trajectory = read([user(), assistant([token("42")], content="42", reasoning_content="long thought")])
    assert shape(trajectory) == [("prompt", 0, 0), ("reasoning", 0, 0), ("reasoning", 1, 0)]
    assert trajectory.spans is SpanQuality.APPROXIMATE


def test_no_logprobs_at_all_still_gives_calls() -> None:
    trajectory = read([user(), assistant(None, content="hm", tool_calls=[call()]), result('{"error": "gone"}')])
    assert trajectory.entropy is None
    assert trajectory.token_texts is None
    assert trajectory.estimator is Estimator.NONE
    assert trajectory.calls[0].status is CallStatus.ERROR


def test_parallel_repeated_missing_and_unknown_call_ids() -> None:
    trajectory = read(
        [
            user(),
            assistant([token("a")], tool_calls=[call("f", id="x"), call("g", id="y"), call("h", id="z")]),
            result("for g", "y"),
            result("for f", "x"),
            assistant([token("b")], tool_calls=[call("f", id="x"), call("k", id=None)]),
            result("again", "x"),
            result("by order", None),
            result("orphan", "nobody"),
            assistant([token("c")], content="c"),
        ]
    )
    assert [(c.id, c.name, c.turn, c.result) for c in trajectory.calls] == [
        ("x", "f", 0, "for f"),
        ("y", "g", 0, "for g"),
        ("z", "h", 0, "by order"),
        ("x#2", "f", 1, "again"),
        ("call-4", "k", 1, "orphan"),
    ]
    assert trajectory.n_calls == 5


def test_hermes_markup_left_in_the_text_is_a_call() -> None:
    text = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    for message in (assistant([token(text)]), assistant(None, content=text)):
        trajectory = read([user(), message, result("ok", None)])
        assert [(c.name, c.arguments, c.result) for c in trajectory.calls] == [("f", '{"a": 1}', "ok")]


def test_late_result_after_a_user_message() -> None:
    trajectory = read([user(), assistant([token("a")], tool_calls=[call()]), user("wait"), result("late")])
    assert trajectory.calls[0].result == "late"
    assert trajectory.stop_reason is StopReason.UNKNOWN


def test_server_habits_in_token_entries() -> None:
    tokens: list[dict[str, Any]] = [
        {"token": "a", "logprob": -9999.0, "top_logprobs": [{"token": "b", "logprob": math.log(0.9)}]},
        {"token": "b", "logprob": None},
        {"token": "c", "logprob": -1, "bytes": None, "top_logprobs": None},
        {"token": "d", "logprob": 0, "top_logprobs": []},
    ]
    trajectory = read([user(), assistant(tokens)], vocab_size=100)
    assert trajectory.logprobs is not None
    np.testing.assert_array_equal(trajectory.logprobs, [np.nan, np.nan, -1, 0])
    assert trajectory.entropy is not None
    assert np.isnan(trajectory.entropy).tolist() == [False, True, True, True]


def test_characters_spread_over_tokens_are_joined_by_their_bytes() -> None:
    tokens = [token("\ufffd", bytes=[0xE2, 0x82]), token("\ufffd", bytes=[0xAC]), token("!", bytes=[0x21])]
    trajectory = read([user(), assistant(tokens)])
    assert trajectory.token_texts == ("", "€", "!")


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (token("\ufffd", bytes=[0x82]), ("", "\ufffd")),
        (token("<|im_end|>", bytes=list(b"<|im_end|>")), ("\ufffd", "<|im_end|>")),
    ],
)
def test_a_character_that_is_never_complete_is_no_part_of_the_end_token(
    last: dict[str, Any], expected: tuple[str, ...]
) -> None:
    tokens = [token("\ufffd", bytes=[0xE2]), last]
    trajectory = read([user(), assistant(tokens, content="\ufffd")])
    assert trajectory.token_texts == expected
    assert trajectory.segments[-1].kind is (SegmentKind.CONTROL if len(last["bytes"]) > 1 else SegmentKind.REASONING)
    assert trajectory.spans is SpanQuality.EXACT


def test_content_parts_and_legacy_function_calls() -> None:
    trajectory = read(
        [
            {"role": "user", "content": [{"type": "text", "text": "see "}, {"type": "image_url", "image_url": {}}]},
            assistant(None, function_call={"name": "f", "arguments": "{}"}),
            {"role": "function", "name": "f", "content": "1"},
        ]
    )
    assert trajectory.question == "see [image_url]"
    assert trajectory.calls[0].result == "1"


def test_python_and_javascript_writers_are_read() -> None:
    raw = line([user("\ud800"), assistant([token("a", (0.9, 0.1, 0.0))])], vocab_size=3).replace(
        b"-9999.0", b"-Infinity"
    )
    trajectory = decode(raw, default_id="d")
    assert b"Infinity" in raw
    assert trajectory.question == "\ufffd"
    assert trajectory.estimator is Estimator.EXACT


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ({"messages": []}, "field messages: missing or empty"),
        ({"messages": [user()]}, "no message of role 'assistant'"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\].*role"),
        ({"messages": [assistant([{"token": "a", "logprob": "low"}])]}, r"messages\[0\].logprobs.*logprob"),
        ({"messages": [assistant([token("a", logprob=0.5)])]}, "logprob 0.5"),
        ({"messages": [assistant([token("a")])], "logprobs_mode": "raw_logits"}, "expected log-probabilities"),
        (
            {"messages": [assistant([token("a")])], "vocab_size": 2},
            "field vocab_size: a vocabulary of 2 tokens is too small: token 0 has 3 top_logprobs; state the",
        ),
        ({"request": {"messages": []}, "response": {"error": {"message": "overloaded"}}}, "holds an error"),
        ({"request": {"messages": []}, "response": {"choices": []}}, "no choices"),
        ({"request": {"messages": []}, "response": {"choices": [{}]}}, "whole response or its chunks"),
        ({"request": {"messages": []}}, "field response: missing"),
        ({"request": {"messages": []}, "response": 'data: {"error": 1}'}, "ends in an error"),
        ({"request": {"messages": []}, "response": []}, "no chunk carries a choice"),
    ],
)
def test_bad_lines_name_field_and_reason(log: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode(json.dumps(log).encode(), default_id="d")


def test_kinds_are_only_sampled_inside_assistant_messages() -> None:
    trajectory = read(qwen_turns())
    assert all(s.n_tokens == 0 for s in trajectory.segments if not s.kind.sampled)
    assert {s.kind for s in trajectory.segments if s.n_tokens} == {
        SegmentKind.REASONING, SegmentKind.CALL, SegmentKind.CONTROL
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("error: no such page", True),
        ("Error: 404", True),
        (" ERROR calling search: timeout", True),
        ("Error", True),
        ('{"error": {"code": 1}}', True),
        ("{'error': 'bad'}", True),
        ('{"error": null, "hits": 3}', False),
        ('{"error"', False),
        ("Errors and residuals are closely related", False),
        ("Error correction is a field of coding theory", False),
        ("errorless: yes", False),
        ("Traceback (most recent call last):\n  File", True),
        ("ValueError: bad", True),
        ("TypeErrors: a field guide", False),
        ("", False),
    ],
)
def test_error_results(text: str, expected: bool) -> None:
    assert is_error(text) is expected


def test_a_forced_call_is_spelled_by_all_its_tokens() -> None:
    """llama.cpp under a named tool choice samples the arguments alone, with no delimiter and no name."""
    tokens = [token(text) for text in ('{"', "query", '": "x"}', "<|im_end|>")]
    trajectory = read(
        [user(), assistant(tokens, tool_calls=[call()]), result("r"), assistant([token("b")], content="b")]
    )
    assert shape(trajectory)[1:3] == [("call", 3, 0), ("control", 1, 0)]
    assert trajectory.spans is SpanQuality.EXACT


def test_tokens_printed_as_numbers_are_read_by_their_bytes() -> None:
    tokens = [token(" I") | {"token": "token_id:262"}, token("<tool_call>") | {"token": "token_id:1387"}]
    trajectory = read([user(), assistant(tokens, content=" I", tool_calls=[call()])])
    assert trajectory.token_texts == (" I", "<tool_call>")
    assert trajectory.spans is SpanQuality.EXACT

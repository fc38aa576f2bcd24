"""Streamed responses: any cutting of a response into chunks gives the response back."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltah.core.types import StopReason, Trajectory
from deltah.errors import DataError
from deltah.traces import read_traces

from .chat import decode, token, user


def chunk(delta: dict[str, Any], tokens: list[dict[str, Any]] | None = None, **choice: Any) -> dict[str, Any]:
    logprobs = {"logprobs": {"content": tokens}} if tokens else {}
    return {
        "id": "chatcmpl-7",
        "object": "chat.completion.chunk",
        "model": "served",
        "choices": [{"index": 0, "delta": delta, "finish_reason": None} | logprobs | choice],
    }


TOKENS = [token(text) for text in ("I", " think", ".", "<tool_call>", "{}", "</tool_call>")]
ARGUMENTS = '{"query": "Port Anselm"}'
CHUNKS = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "hm"}),
    chunk({"content": "I"}, TOKENS[:1]),
    chunk({"content": " think."}, TOKENS[1:3]),
    chunk({"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "search"}}]}, TOKENS[3:5]),
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": ARGUMENTS[:9]}}]}, TOKENS[5:]),
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": ARGUMENTS[9:]}}]}),
    chunk({"tool_calls": [{"index": 1, "id": "b", "function": {"name": "python", "arguments": "{}"}}]}),
    chunk({}, finish_reason="tool_calls"),
    {"id": "chatcmpl-7", "object": "chat.completion.chunk", "choices": [], "usage": {"total_tokens": 9}},
]
REQUEST = {"messages": [user()], "temperature": 1.0}


def stream_text(chunks: list[dict[str, Any]]) -> str:
    return "".join(f"data: {json.dumps(c)}\n\n" for c in chunks) + "data: [DONE]\n\n"


def check(trajectory: Any) -> None:
    assert trajectory.token_texts == ("I", " think", ".", "<tool_call>", "{}", "</tool_call>")
    assert [(c.id, c.name, c.arguments) for c in trajectory.calls] == [
        ("a", "search", ARGUMENTS),
        ("b", "python", "{}"),
    ]
    assert [s.kind.value for s in trajectory.segments if s.n_tokens] == ["reasoning", "call"]
    assert trajectory.stop_reason is StopReason.UNANSWERED_CALL
    assert trajectory.model == "served"


@pytest.mark.parametrize(
    "line",
    [
        {"request": REQUEST, "response": CHUNKS},
        {"request": REQUEST, "chunks": CHUNKS},
        {"request": REQUEST, "response": stream_text(CHUNKS)},
        {
            "custom_id": "q1",
            "request": {"body": REQUEST},
            "response": {"status_code": 200, "body": None},
            "chunks": CHUNKS,
        },
    ],
)
def test_every_form_of_a_stream_is_read(line: dict[str, Any]) -> None:
    check(decode(json.dumps(line).encode(), default_id="d"))


@pytest.mark.parametrize("prefix", ["", "data: "])
def test_chunks_logged_one_a_line_are_gathered_by_id(tmp_path: Path, prefix: str) -> None:
    others = [c | {"id": "other"} for c in CHUNKS]
    lines = [one for pair in zip(CHUNKS, others, strict=True) for one in pair]
    (tmp_path / "log").write_text("".join(f"{prefix}{json.dumps(c)}\n" for c in lines))
    found = list(read_traces(tmp_path / "log", strict=True))
    assert [t.id for t in found] == ["chatcmpl-7", "other"]
    for trajectory in found:
        check(trajectory)


def test_a_stream_without_an_end_is_kept(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(json.dumps(c) + "\n" for c in CHUNKS[:4]))
    [cut] = read_traces(tmp_path / "log", strict=True)
    assert cut.token_texts == ("I", " think", ".")


def test_other_choices_may_end_after_the_first(tmp_path: Path) -> None:
    """SGLang ends all choices of a stream at its end, one after the other."""
    last = {"id": "chatcmpl-7", "object": "chat.completion.chunk"}
    late = last | {"choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]}
    (tmp_path / "log").write_text("".join(json.dumps(c) + "\n" for c in [*CHUNKS, late]))
    [trajectory] = read_traces(tmp_path / "log", strict=True)
    check(trajectory)


def enveloped(chunks: list[dict[str, Any]], **envelope: Any) -> list[dict[str, Any]]:
    return [{"request": REQUEST, "response": c} | envelope for c in chunks]


def taken_turns(*streams: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of several streams of one length, one of each in turn."""
    return [one for together in zip(*streams, strict=True) for one in together]


def read_lines(path: Path, lines: list[dict[str, Any]], **options: Any) -> list[Trajectory]:
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return list(read_traces(path, strict=True, **options))


@pytest.mark.parametrize("wrapped", [False, True])
def test_chunks_in_the_envelope_of_their_call_are_gathered_by_response_id(tmp_path: Path, wrapped: bool) -> None:
    streams = [enveloped([c | {"id": i} for c in CHUNKS], session_id=f"session {i}") for i in ("r", "s", "t")]
    lines = taken_turns(*streams)
    if wrapped:
        lines = [one | {"response": {"status_code": 200, "body": one["response"]}} for one in lines]
    found = read_lines(tmp_path / "log", lines)
    assert [(t.id, t.question) for t in found] == [(f"session {i}", "Where?") for i in ("r", "s", "t")]
    for trajectory in found:
        check(trajectory)
        assert trajectory.temperature == 1.0


def test_the_envelope_of_a_stream_is_that_of_its_first_line(tmp_path: Path) -> None:
    first = {"request": REQUEST, "response": CHUNKS[0], "id": "mine", "vocab_size": 99, "session_id": "s"}
    rest = [{"response": c, "id": f"line {i}"} for i, c in enumerate(CHUNKS[1:5])]
    [trajectory] = read_lines(tmp_path / "log", [first, *rest, *CHUNKS[5:]], join=False)
    check(trajectory)
    assert (trajectory.id, trajectory.question) == ("mine", "Where?")
    assert np.isfinite(trajectory.entropy_upper).all()


def test_streamed_calls_of_a_conversation_are_joined_and_timed(tmp_path: Path) -> None:
    """The first response lasts from 100 to 103, by the last of its lines; the second begins at 104.5."""
    first = enveloped(CHUNKS, session_id="s")
    for number, one in enumerate(first):
        one |= {"started_at": 100.0 + number / 10, "duration_s": 0.0}
    first[8] |= {"started_at": 102.0, "duration_s": 1.0}
    calls = [
        {"id": "a", "type": "function", "function": {"name": "search", "arguments": ARGUMENTS}},
        {"id": "b", "type": "function", "function": {"name": "python", "arguments": "{}"}},
    ]
    messages = [
        user(),
        {"role": "assistant", "content": "I think.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a", "content": "A city."},
        {"role": "tool", "tool_call_id": "b", "content": "4"},
    ]
    ends = [chunk({"content": "North."}, [token("North.")]), chunk({}, finish_reason="stop")]
    second = [
        {"request": {"messages": messages}, "response": c | {"id": "second"}, "session_id": "s", "started_at": 104.5}
        for c in ends
    ]
    [joined] = read_lines(tmp_path / "log", first + second)
    assert [(c.name, c.result, c.duration_s) for c in joined.calls] == [
        ("search", "A city.", 0.75),
        ("python", "4", 0.75),
    ]
    assert (joined.id, joined.prediction, joined.metadata["n_requests"]) == ("s", "North.", 2)
    cut = [*first, second[0]]
    [kept] = read_lines(tmp_path / "cut", cut)
    assert (kept.token_texts, kept.metadata["n_requests"]) == (joined.token_texts, 2), "a stream without an end"


def test_one_line_that_holds_a_whole_streamed_response_is_one_call(tmp_path: Path) -> None:
    whole = chunk({"role": "assistant", "content": "I think."}, TOKENS[:3], finish_reason="stop")
    lines = enveloped([whole, whole, whole | {"id": "other"}])
    found = read_lines(tmp_path / "log", lines, join=False)
    assert [(t.id, t.prediction) for t in found] == [("chatcmpl-7", "I think.")] * 2 + [("other", "I think.")]


def test_of_several_enveloped_choices_the_first_is_read(tmp_path: Path) -> None:
    others = [c | {"choices": [choice | {"index": 1} for choice in c["choices"]]} for c in CHUNKS]
    lines = enveloped(taken_turns(CHUNKS, others), session_id="s")
    [trajectory] = read_lines(tmp_path / "log", lines)
    check(trajectory)
    assert trajectory.metadata["n_choices"] == 2


def test_a_whole_response_that_calls_itself_a_chunk_is_one_call(tmp_path: Path) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": None}
    response = {"id": "r", "object": "chat.completion.chunk", "choices": [choice]}
    found = read_lines(tmp_path / "log", enveloped([response, response]), join=False)
    assert [t.token_texts for t in found] == [None, None]
    assert len(found) == 2


@pytest.mark.parametrize("finish", [None, "tool_calls"])
def test_an_empty_choice_after_the_end_is_no_response(tmp_path: Path, finish: str | None) -> None:
    """OpenRouter reports usage beside one; a stream that uses the id once more is another response."""
    late = chunk({"role": "assistant", "content": ""}, finish_reason=finish) | {"usage": {"completion_tokens": 6}}
    lines = enveloped([*CHUNKS, late, *CHUNKS, late])
    found = read_lines(tmp_path / "log", lines, join=False)
    assert len(found) == 2
    for trajectory in found:
        check(trajectory)


def test_an_unreadable_open_stream_costs_no_conversation(tmp_path: Path) -> None:
    wrong = {"content": [{"token": "I", "logprob": 2.0}]}
    opened = {
        "id": "cut", "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": {"content": "I"}, "logprobs": wrong}],
    }  # fmt: skip
    (tmp_path / "log").write_text("".join(json.dumps(c) + "\n" for c in [*CHUNKS, opened]))
    reader = read_traces(tmp_path / "log")
    [trajectory] = reader
    check(trajectory)
    assert [problem.reason for problem in reader.problems] == [
        "token 0 has the logprob 2; expected a natural logarithm, at most 0"
    ]


def test_a_bare_response_is_a_conversation_of_one_turn(tmp_path: Path) -> None:
    message = {"role": "assistant", "content": "a"}
    choice = {"index": 0, "message": message, "logprobs": {"content": [token("a")]}}
    response = {"id": "r", "object": "chat.completion", "model": "m", "choices": [choice]}
    (tmp_path / "log").write_text(json.dumps([response, response | {"id": "s"}]))
    assert [(t.id, t.token_texts) for t in read_traces(tmp_path / "log", strict=True)] == [("r", ("a",)), ("s", ("a",))]


def test_the_batch_api_is_unwrapped() -> None:
    body = {"id": "r", "choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}
    line = {"id": "batch_req_1", "custom_id": "q1", "response": {"status_code": 200, "body": body}, "error": None}
    trajectory = decode(json.dumps(line).encode(), default_id="d")
    assert (trajectory.id, trajectory.prediction) == ("batch_req_1", "hi")


def test_an_event_that_is_not_json_is_named() -> None:
    with pytest.raises(DataError, match="not valid JSON"):
        decode(json.dumps({"request": REQUEST, "response": "data: {oops\n\n"}).encode(), default_id="d")


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_any_cutting_of_text_and_arguments_is_undone(content: str, arguments: str, cuts: list[int]) -> None:
    edges = sorted({0, 40, *cuts})
    chunks = []
    for a, b in pairwise(edges):
        call = {"index": 0, "function": {"arguments": arguments[a:b]}} | ({"id": "x"} if a == 0 else {})
        chunks.append(chunk({"content": content[a:b], "tool_calls": [call]}))
    chunks[0]["choices"][0]["delta"]["tool_calls"][0]["function"]["name"] = "f"
    trajectory = decode(json.dumps({"request": REQUEST, "response": chunks}).encode(), default_id="d")
    clean = arguments.encode("utf-8", "replace").decode().replace("\ud800", "\ufffd")
    assert trajectory.calls[0].arguments == clean
    assert "".join(s.text or "" for s in trajectory.segments if s.kind.value == "reasoning") == content


@pytest.mark.parametrize(("drawn", "unlisted"), [(6, None), (7, None), (8, 2), (40, 34), (5, None), ("8", None)])
@pytest.mark.parametrize("form", ["whole", "stream", "bare"])
def test_drawn_tokens_beyond_those_listed_are_counted(drawn: object, unlisted: int | None, form: str) -> None:
    """Six tokens are listed; one more may be the end of the turn, which some servers count and do not list."""
    usage = {"completion_tokens": drawn}
    message = {"role": "assistant", "content": "I think."}
    whole = {
        "choices": [{"message": message, "logprobs": {"content": TOKENS}, "finish_reason": "stop"}],
        "usage": usage,
    }
    counting = [*(c | {"usage": {"completion_tokens": 1}} for c in CHUNKS[:-1]), CHUNKS[-1] | {"usage": usage}]
    line = {
        "whole": {"request": REQUEST, "response": whole},
        "stream": {"request": REQUEST, "response": stream_text(counting)},
        "bare": whole,
    }[form]
    assert decode(json.dumps(line).encode(), default_id="d").metadata.get("tokens_without_logprobs") == unlisted


def test_what_says_nothing_of_unlisted_tokens_is_not_taken_for_it() -> None:
    def found(tokens: list[Any] | None, choices: int = 1, finish: str = "stop", **usage: Any) -> object:
        message = {"role": "assistant", "content": "x"}
        one = {"message": message, "logprobs": {"content": tokens}, "finish_reason": finish}
        line = {"request": REQUEST, "response": {"choices": [one] * choices} | usage}
        return decode(json.dumps(line).encode(), default_id="d").metadata.get("tokens_without_logprobs")

    assert found(None, usage={"completion_tokens": 40}) is None, "a log without logprobs"
    assert found(TOKENS, choices=2, usage={"completion_tokens": 40}) is None, "usage is of both choices"
    assert found(TOKENS, usage=None) is None
    assert found(TOKENS, usage="8") is None
    assert found(TOKENS, usage={"completion_tokens": 7}) is None
    assert found(TOKENS, finish="length", usage={"completion_tokens": 7}) == 1, "a cut-off message has no end"

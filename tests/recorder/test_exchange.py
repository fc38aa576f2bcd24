"""What a client sees of an answer, and what becomes a line, whatever the texts hold and however a stream is cut."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("uvicorn")
from deltah.recorder.exchange import Exchange, Fields, Sessions, fields_of
from deltah.recorder.passthrough import smaller

HALVES = ("\ud83d", "\ude00")
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(
        ['"logprobs": {"content": [1]}', "logprobs", '{"logprobs":', "\\", "\n\n", "data: x", "[DONE]", "😀", *HALVES]
    ),
)
TOKENS = st.lists(TEXTS, max_size=4)
FORMS = st.fixed_dictionaries({"indent": st.sampled_from([None, 1]), "ensure_ascii": st.booleans()})


def block(tokens: list[str]) -> dict[str, Any]:
    return {"content": [{"token": t, "logprob": -0.5, "top_logprobs": [{"token": t, "logprob": -0.5}]} for t in tokens]}


def response(tokens: list[str], text: str, logprobs: object) -> dict[str, Any]:
    call = {"id": "1", "function": {"name": "search", "arguments": json.dumps({"logprobs": {"content": text}})}}
    message = {"role": "assistant", "content": text, "tool_calls": [call], "logprobs": None}
    choices = [{"logprobs": logprobs, "index": i, "message": message, "finish_reason": "stop"} for i in range(2)]
    return {"choices": choices, "schema": {"logprobs": {"type": "object"}}, "tokens": tokens}


def exchange(**options: Any) -> Exchange:
    sent = fields_of(b'{\n"model": "m",\r\n "messages": []}')
    assert sent is not None
    return Exchange("/v1/chat/completions", "s", sent, **options)


def encoded(value: object, form: dict[str, Any]) -> bytes:
    return json.dumps(value, **form).encode("utf-8", "replace")


@given(tokens=TOKENS, text=TEXTS, form=FORMS)
def test_only_log_probabilities_are_taken_from_an_answer(tokens: list[str], text: str, form: dict[str, Any]) -> None:
    body = encoded(response(tokens, text, block(tokens)), form)
    hiding, passing = exchange(hides=True), exchange()
    assert hiding.take_whole(body) == encoded(response(tokens, text, None), form)
    assert passing.take_whole(body) == body
    assert hiding.n_blocks == passing.n_blocks == 2
    for one in (hiding, passing):
        one.finish()
        assert one.line().count(b"\n") == 1
        assert json.loads(one.line())["response"] == json.loads(body)


@given(
    tokens=st.lists(TEXTS, min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 2000), max_size=8),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_a_stream_may_be_cut_anywhere(tokens: list[str], cuts: list[int], end: str) -> None:
    def stream(logprobs: bool) -> bytes:
        chunks = [
            {"choices": [{"index": 0, "delta": {"content": t}, "logprobs": block([t]) if logprobs else None}]}
            for t in tokens
        ]
        events = [": ping", *(f"event: x{end}data: {json.dumps(chunk)}" for chunk in chunks), "data: [DONE]"]
        return "".join(event + end + end for event in events).encode()

    data, one = stream(True), exchange(hides=True)
    borders = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    seen = b"".join(one.take_part(data[a:b]) for a, b in pairwise(borders)) + one.take_end()
    assert seen == stream(False)
    one.finish()
    said = [c["choices"][0]["delta"]["content"] for c in json.loads(one.line())["response"]]
    assert said == tokens
    assert one.text == "".join("�" if t in HALVES else t for t in tokens)
    assert one.is_over


@pytest.mark.parametrize(
    ("refusal", "k", "fewer"),
    [
        ("Invalid value for 'top_logprobs': must be less than or equal to 5.", 20, 5),
        ("Requested sample logprobs of 20, which is greater than max allowed: 10", 20, 10),
        ("top_logprobs: Input should be less than or equal to 20 [type=less_than_equal, input_value=50]", 50, 20),
        ("Input validation error: `top_n_tokens` must be >= 0 and <= 5. Given: 20", 20, 5),
        ("logprobs is not supported by gpt-4-1-mini in api v1", 20, 0),
        ("max_tokens must be at most 8", 20, 0),
        ("top_logprobs must be between 0 and 20", 20, 0),
    ],
)
def test_how_many_a_refusal_allows(refusal: str, k: int, fewer: int) -> None:
    assert smaller(refusal, k) == fewer


def test_a_call_id_that_is_repeated_in_each_chunk_is_one() -> None:
    """As llama-cpp-python streams; an id that is drawn at random says enough where the beginning was rewritten."""
    sessions, id = Sessions("salt"), "chatcmpl-tool-1f0c7a"
    call = {"id": id, "type": "function", "function": {"name": "search", "arguments": "{}"}}

    def request(*messages: dict[str, Any]) -> Fields:
        return {"messages": json.dumps(messages).encode()}

    user = {"role": "user", "content": "Where is Tarn?"}
    begun = sessions.find(request(user), [])
    sessions.remember(begun, [id, id], "")
    reply = {"role": "assistant", "content": None, "tool_calls": [call]}
    for first in (user, {"role": "user", "content": "It is 10:15. Where is Tarn?"}):
        assert (
            sessions.find(request(first, reply, {"role": "tool", "tool_call_id": id, "content": "West."}), []) == begun
        )
    assert sessions.find(request(user), []) != begun

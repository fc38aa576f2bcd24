"""Streams as servers really send them: indices that say nothing, chunks of filters, empty ids, errors in a choice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltah import read_traces
from deltah.errors import DataError
from deltah.traces.openai_schema import DeltaToolCall

from .chat import decode, token
from .test_chunks import REQUEST, chunk

SEA, HILL = '{"query": "sea"}', '{"height": 3}'
TWO = [("find", SEA), ("climb", HILL)]


def piece(name: str | None = None, arguments: Any = None, **fields: Any) -> dict[str, Any]:
    """One piece; `index` is given, null, or missing."""
    function = {"name": name, "arguments": arguments}
    return {"function": {key: value for key, value in function.items() if value is not None}} | fields


def calls_of(*pieces: dict[str, Any]) -> list[tuple[str, Any]]:
    chunks = [chunk({"content": "Hm"}, [token("Hm")]), *(chunk({"tool_calls": [one]}) for one in pieces)]
    chunks.append(chunk({}, finish_reason="tool_calls"))
    found = decode(json.dumps({"request": REQUEST, "response": chunks}).encode())
    return [(one.name, one.arguments) for one in found.calls]


@pytest.mark.parametrize("place", [{"index": 0}, {"index": None}, {}], ids=["always 0", "null", "missing"])
class TestCallsWithoutAnIndex:
    def test_whole_calls_with_ids(self, place: dict[str, Any]) -> None:
        assert calls_of(piece("find", SEA, id="a", **place), piece("climb", HILL, id="b", **place)) == TWO

    def test_whole_calls_without_ids(self, place: dict[str, Any]) -> None:
        assert calls_of(piece("find", SEA, id="", **place), piece("climb", HILL, **place)) == TWO

    def test_the_same_tool_twice(self, place: dict[str, Any]) -> None:
        same = calls_of(piece("find", SEA, **place), piece("find", HILL, **place))
        assert same == [("find", SEA), ("find", HILL)]

    def test_arguments_in_parts(self, place: dict[str, Any]) -> None:
        parts = [piece("find", "", id="a", **place), piece(None, SEA[:6], **place), piece(None, SEA[6:], **place)]
        assert calls_of(*parts, piece("climb", "", id="b", **place), piece(None, HILL, **place)) == TWO

    def test_arguments_after_a_whole_object(self, place: dict[str, Any]) -> None:
        assert calls_of(piece("find", SEA, **place), piece(None, HILL, **place)) == [("find", SEA), ("", HILL)]

    def test_arguments_as_objects(self, place: dict[str, Any]) -> None:
        given = calls_of(piece("find", {"query": "sea"}, **place), piece("climb", {"height": 3}, **place))
        assert [(name, json.loads(arguments)) for name, arguments in given] == [
            ("find", {"query": "sea"}),
            ("climb", {"height": 3}),
        ]

    def test_names_and_ids_in_every_piece(self, place: dict[str, Any]) -> None:
        parts = [piece("find", part, id="a", **place) for part in (SEA[:4], SEA[4:], "")]
        assert calls_of(*parts, piece("climb", HILL, id="b", **place)) == TWO

    def test_the_arguments_once_more_at_the_end(self, place: dict[str, Any]) -> None:
        assert calls_of(piece("find", SEA, id="a", **place), piece(None, SEA, **place)) == [("find", SEA)]

    def test_an_empty_object_before_the_parts(self, place: dict[str, Any]) -> None:
        assert calls_of(piece("find", "{}", id="a", **place), piece(None, SEA, **place)) == [("find", SEA)]

    def test_name_and_arguments_beside_the_id(self, place: dict[str, Any]) -> None:
        assert calls_of({"id": "a", "name": "find", "arguments": SEA, **place}) == [("find", SEA)]


def test_calls_that_arrive_in_turns() -> None:
    halves = [piece(None, SEA[:5], index=0), piece(None, HILL[:5], index=1)]
    rests = [piece(None, SEA[5:], index=0), piece(None, HILL[5:], index=1)]
    assert calls_of(piece("find", index=0), piece("climb", index=1), *halves, *rests) == TWO


def test_a_fresh_id_in_every_piece_begins_no_call() -> None:
    parts = [
        piece("find", "", id="1", index=0),
        piece(None, SEA[:7], id="2", index=0),
        piece(None, SEA[7:], id="3", index=0),
    ]
    assert calls_of(*parts, piece("climb", HILL, id="4", index=1)) == TWO


def test_an_index_is_not_needed() -> None:
    assert DeltaToolCall().index is None


FILTER = {"id": "", "object": "", "model": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
CHECKED = {
    "id": "",
    "object": "",
    "choices": [{"index": 0, "finish_reason": None, "content_filter_offsets": {"start_offset": 1}}],
}
EMPTY = {"id": "", "choices": [{"index": 0, "delta": {}, "content_filter_results": {"hate": {"filtered": False}}}]}
USAGE = {"id": "", "object": "", "choices": [], "usage": {"completion_tokens": 2}}
WORDS = [chunk({"role": "assistant", "content": "In"}, [token("In")]), chunk({"content": " May"}, [token(" May")])]
END = chunk({}, finish_reason="stop")
STREAM = [FILTER, WORDS[0], CHECKED, WORDS[1], EMPTY, END, CHECKED, USAGE]


def test_filters_and_empty_ids_stand_around_one_response_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps({"request": REQUEST, "response": STREAM}) + "\n")
    [t] = read_traces(tmp_path / "log.jsonl", strict=True)
    assert (t.id, t.token_texts) == ("chatcmpl-7", ("In", " May"))


@pytest.mark.parametrize("envelope", [{}, {"session_id": "s"}])
def test_filters_and_empty_ids_stand_around_one_response_over_lines(envelope: dict[str, Any], tmp_path: Path) -> None:
    others = [one | {"id": "other"} if one["id"] else one for one in STREAM]
    lines = [
        {"request": REQUEST, "response": one} | envelope for pair in zip(STREAM, others, strict=True) for one in pair
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    found = list(read_traces(tmp_path / "log.jsonl", strict=True))
    assert [t.token_texts for t in found] == [("In", " May")] * 2


def test_bare_chunks_with_filters(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in STREAM))
    [t] = read_traces(tmp_path / "log.jsonl", strict=True)
    assert t.token_texts == ("In", " May")


def whole(**choice: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": ""}
    return {"id": "x", "object": "chat.completion", "choices": [{"index": 0, "message": message, **choice}]}


FAILED = {"index": 0, "delta": {"content": ""}}


@pytest.mark.parametrize(
    "response",
    [
        whole(error={"code": 502, "message": "no provider"}),
        whole(finish_reason="error"),
        whole(finish_reason="error", error={"message": "no provider"}),
        [*WORDS, chunk({}, finish_reason="error")],
        [*WORDS, {"id": "chatcmpl-7", "choices": [FAILED | {"error": {"message": "no provider"}}]}],
    ],
)
def test_an_error_inside_a_choice_is_one_problem_and_no_trajectory(response: Any, tmp_path: Path) -> None:
    good = {"request": REQUEST, "response": [*WORDS, END]}
    lines = [{"request": REQUEST, "response": response}, good]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    reader = read_traces(tmp_path / "log.jsonl")
    assert [t.token_texts for t in reader] == [("In", " May")]
    [problem] = reader.problems
    assert problem.line == 1
    assert "error" in problem.reason


def test_an_error_ends_a_stream_of_lines(tmp_path: Path) -> None:
    error = {"id": "chatcmpl-7", "choices": [FAILED | {"finish_reason": "error", "error": {"message": "overloaded"}}]}
    lines = [{"request": REQUEST, "response": one} for one in (*WORDS, error)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    reader = read_traces(tmp_path / "log.jsonl")
    assert not list(reader)
    assert reader.n_problems == 1


def test_a_null_error_is_none() -> None:
    assert decode(json.dumps({"request": REQUEST, "response": whole(error=None)}).encode()).n_calls == 0


def test_a_text_completion_may_be_streamed(tmp_path: Path) -> None:
    request = {"prompt": "Say when.", "stream": True}
    texts = [("In", None), (" May", None), ("", "stop")]
    lines = [
        {"request": request, "response": {"id": "t", "choices": [{"index": 0, "text": text, "finish_reason": end}]}}
        for text, end in texts
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    [t] = read_traces(tmp_path / "log.jsonl", strict=True)
    assert t.prediction == "In May"


def test_nothing_but_an_empty_list_of_choices_is_a_problem() -> None:
    with pytest.raises(DataError, match="no choices"):
        decode(
            json.dumps(
                {"request": REQUEST, "response": {"id": "x", "object": "chat.completion", "choices": []}}
            ).encode()
        )


def test_a_list_of_events_as_texts_is_a_stream(tmp_path: Path) -> None:
    texts = [f"data: {json.dumps(one)}\n\n" for one in (*WORDS, END)]
    for listed in ([*texts, "data: [DONE]\n\n", None], [json.dumps(one) for one in (*WORDS, END)]):
        for name in ("response", "chunks"):
            [t] = [decode(json.dumps({"request": REQUEST, name: listed}).encode())]
            assert t.token_texts == ("In", " May")


def test_an_index_of_null_is_the_first_choice() -> None:
    nameless = [one | {"choices": [one["choices"][0] | {"index": None}]} for one in (*WORDS, END)]
    assert decode(json.dumps({"request": REQUEST, "response": nameless}).encode()).token_texts == ("In", " May")


def test_thinking_may_be_streamed_as_parts(tmp_path: Path) -> None:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "In"}]}
    parts = [chunk({"content": [thought]}, [token("In")]), chunk({"content": " May"}, [token(" May")]), END]
    (tmp_path / "log.jsonl").write_text(json.dumps({"request": REQUEST, "response": parts}) + "\n")
    [t] = read_traces(tmp_path / "log.jsonl", strict=True)
    assert (t.prediction, t.token_texts, t.spans.value) == ("May", ("In", " May"), "exact")

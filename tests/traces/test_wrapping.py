"""What stands around a record is opened before its format is recognised."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import deltah
from traces.chat import assistant, call, result, token, user

SKEWED, EVEN = (0.5, 0.25, 0.125, 0.125), (0.25,) * 4
DELTA = 0.25 * math.log(2)
"""Of four tokens: H(1/2, 1/4, 1/8, 1/8) = 7/4 ln 2, H(1/4 each) = 2 ln 2, so ΔH = (2 - 7/4) ln 2."""
FIRST = assistant([token("Hm", SKEWED)], content="Hm", tool_calls=[call("tide", '{"day": 3}')])
LAST = assistant([token("Ten", EVEN)], content="Ten")
CONVERSATION = [user("Tide?"), FIRST, result("10:00"), LAST]


def response(message: dict[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in message.items() if key != "logprobs"}
    return {"id": "r", "choices": [{"index": 0, "message": plain, "logprobs": message.get("logprobs")}]}


def exchanges() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The conversation as two requests with their responses."""
    return [
        ({"messages": CONVERSATION[:1]}, response(FIRST)),
        ({"messages": [user("Tide?"), FIRST | {"logprobs": None}, result("10:00")]}, response(LAST)),
    ]


def text(value: Any) -> str:
    return json.dumps(value)


WHOLE: dict[str, Callable[[], Any]] = {
    "messages as text": lambda: {"id": "c", "messages": text(CONVERSATION)},
    "a bare array": lambda: CONVERSATION,
    "data": lambda: {"data": [{"id": "c", "messages": CONVERSATION}], "has_more": False},
    "a record as text": lambda: {"timestamp": "2026-01-01", "message": text({"messages": CONVERSATION})},
    "an envelope": lambda: {"_index": "logs", "_source": {"messages": CONVERSATION}},
    "two envelopes": lambda: {"hits": {"hits": [{"_source": {"messages": CONVERSATION}}]}},
    "input and output": lambda: {"input": CONVERSATION[:3], "output": [LAST]},
    "conversation": lambda: {"conversation": CONVERSATION, "user": "u"},
}
CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "response as text": lambda asked, answered: {"request": asked, "response": text(answered)},
    "both as text": lambda asked, answered: {"request": text(asked), "response": text(answered)},
    "bodies as text": lambda a, b: {"request": {"body": text(a), "url": "u"}, "response": {"body": text(b)}},
    "input and output": lambda asked, answered: {"name": "n", "input": asked, "output": answered},
    "inputs and outputs as text": lambda a, b: {"inputs": text(a), "outputs": text(b), "start": 3},
    "input of messages": lambda asked, answered: {"input": asked["messages"], "output": answered},
    "payloads": lambda a, b: {"llm_request_payload": text(a), "llm_response_payload": text(b)},
    "bedrock's log": lambda a, b: {"schemaType": "x", "input": {"inputBodyJson": a}, "output": {"outputBodyJson": b}},
    "request_body": lambda asked, answered: {"request_body": asked, "response_body": answered, "status": 200},
    "payload": lambda a, b: {"severity": "INFO", "jsonPayload": {"request": a, "response": b}},
}


def values(path: Path, data: bytes) -> list[float]:
    path.write_bytes(data)
    table = deltah.read_calls(path, vocab_size=4)
    return [value for (value,) in table.sql("SELECT value FROM calls ORDER BY key").fetchall()]


@pytest.mark.parametrize("form", WHOLE)
def test_a_conversation_is_found_in_what_stands_around_it(tmp_path: Path, form: str) -> None:
    record = WHOLE[form]()
    assert values(tmp_path / "a.jsonl", text(record).encode() + b"\n") == pytest.approx([DELTA])
    two = text(record).encode() + b"\n" + text(record).encode() + b"\n"
    assert values(tmp_path / "b.jsonl", two) == pytest.approx([DELTA, DELTA])
    assert values(tmp_path / "c.json", json.dumps(record, indent=2).encode()) == pytest.approx([DELTA])


@pytest.mark.parametrize("form", CALLS)
def test_api_calls_are_found_and_joined(tmp_path: Path, form: str) -> None:
    lines = [text(CALLS[form](asked, answered)) for asked, answered in exchanges()]
    assert values(tmp_path / "a.jsonl", "\n".join(lines).encode()) == pytest.approx([DELTA])


def test_records_inside_one_have_places_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good, bad = {"messages": CONVERSATION}, {"messages": [user("Tide?")]}
    path.write_text(text({"data": [good, bad, good]}), encoding="utf-8")
    reader = deltah.read_traces(path)
    assert [trajectory.id for trajectory in reader] == ["a.jsonl:1.1", "a.jsonl:1.3"]
    assert reader.n_problems == 1
    assert "no message of role 'assistant'" in reader.problems[0].reason


def test_a_grade_beside_the_record_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text({"score": 0.5, "session_id": "s", "payload": {"messages": CONVERSATION}}), encoding="utf-8")
    (found,) = deltah.read_traces(path)
    assert found.outcome == 0.5


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-8"])
def test_a_byte_order_mark_names_the_encoding(tmp_path: Path, encoding: str) -> None:
    lines = [text({"messages": CONVERSATION}), json.dumps({"messages": CONVERSATION}, ensure_ascii=False)]
    data = ("\ufeff" + "\r\n".join(lines)).encode(encoding)
    assert values(tmp_path / "a.jsonl", data) == pytest.approx([DELTA, DELTA])


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_needs_no_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    assert values(tmp_path / "a.jsonl", text({"messages": CONVERSATION}).encode(encoding)) == pytest.approx([DELTA])


def test_a_failed_request_is_not_read_as_a_conversation(tmp_path: Path) -> None:
    """Its history may hold earlier answers, but they are of other requests."""
    path = tmp_path / "a.jsonl"
    (_, (asked, _)) = exchanges()
    path.write_text(text({"request": asked, "response": {"error": {"message": "overloaded"}}}), encoding="utf-8")
    reader = deltah.read_traces(path)
    assert not list(reader)
    assert "it holds an error" in reader.problems[0].reason
    path.write_text(text({"input": asked, "output": None}), encoding="utf-8")
    assert not list(deltah.read_traces(path))


@pytest.mark.parametrize("indent", [None, 2])
def test_objects_one_after_another_are_records(tmp_path: Path, indent: int | None) -> None:
    one = json.dumps({"messages": CONVERSATION}, indent=indent)
    assert values(tmp_path / "a.json", f"{one}\n{one}\n".encode()) == pytest.approx([DELTA, DELTA])


def test_an_object_that_begins_on_its_first_line_is_a_document(tmp_path: Path) -> None:
    first, rest = '{"id": "c", "messages": [', ",\n".join(map(text, CONVERSATION))
    assert values(tmp_path / "a.json", f"{first}\n{rest}]}}".encode()) == pytest.approx([DELTA])


def test_a_damaged_first_line_does_not_make_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"messages": [{"role": "us\n' + text({"messages": CONVERSATION}) + "\n", encoding="utf-8")
    reader = deltah.read_traces(path)
    assert len(list(reader)) == 1
    assert [problem.line for problem in reader.problems] == [1]


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "Add.", "input": "2 2", "output": "4"},
        {"question": "Tide?", "answer": "[10]", "contexts": [{"title": "t", "text": "x"}]},
        {"data": [{"title": "t", "paragraphs": []}]},
        {"data": "[broken"},
    ],
)
def test_other_records_stay_foreign(tmp_path: Path, record: dict[str, Any]) -> None:
    (tmp_path / "a.jsonl").write_text(text({"messages": CONVERSATION}), encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(text(record), encoding="utf-8")
    reader = deltah.read_traces(tmp_path)
    assert len(list(reader)) == 1
    assert [Path(path).name for path in reader.skipped] == ["b.jsonl"]


TIDE = {"name": "tide", "args": {"day": 3}}
GEMINI = (
    {"contents": [{"role": "user", "parts": [{"text": "Tide?"}]}]},
    {"candidates": [{"content": {"role": "model", "parts": [{"text": "Hm"}, {"functionCall": TIDE}]}, "index": 0}]},
)
BEDROCK = (
    {"modelId": "m", "messages": [{"role": "user", "content": [{"text": "Tide?"}]}]},
    {
        "output": {
            "message": {
                "role": "assistant",
                "content": [{"text": "Hm"}, {"toolUse": {"toolUseId": "u", "name": "tide", "input": {"day": 3}}}],
            }
        },
        "stopReason": "tool_use",
    },
)


@pytest.mark.parametrize("pair", [GEMINI, BEDROCK], ids=["gemini", "bedrock"])
@pytest.mark.parametrize("names", [("request", "response"), ("input", "output")])
def test_responses_of_other_services_are_read(tmp_path: Path, pair: Any, names: tuple[str, str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text(dict(zip(names, pair, strict=True))), encoding="utf-8")
    (found,) = deltah.read_traces(path)
    assert found.question == "Tide?"
    assert [(one.name, json.loads(one.arguments)) for one in found.calls] == [("tide", {"day": 3})]
    assert [segment.text for segment in found.segments][1] == "Hm"


def spelled(name: str) -> list[dict[str, Any]]:
    """One conversation in the messages of a framework."""
    words = [
        ("user", "human", "Tide?"),
        ("assistant", "ai", "Hm"),
        ("tool", "tool", "10:00"),
        ("assistant", "ai", "Ten"),
    ]
    if name == "langchain":
        messages: list[dict[str, Any]] = [{"type": kind, "content": said} for _, kind, said in words]
        messages[1]["tool_calls"] = [{"name": "tide", "args": {"day": 3}, "id": "c", "type": "tool_call"}]
        messages[2]["tool_call_id"] = "c"
        return messages
    if name == "vercel's interface":
        tool = {
            "type": "tool-tide",
            "toolCallId": "c",
            "state": "output-available",
            "input": {"day": 3},
            "output": "10:00",
        }
        parts = [{"type": "text", "text": "Hm"}, tool, {"type": "text", "text": "Ten"}]
        return [{"role": "user", "parts": [{"type": "text", "text": "Tide?"}]}, {"role": "assistant", "parts": parts}]
    call, told = {"functionCall": TIDE}, {"functionResponse": {"name": "tide", "response": "10:00"}}
    return [
        {"role": "user", "parts": [{"text": "Tide?"}]},
        {"role": "model", "parts": [{"text": "Hm"}, call]},
        {"role": "user", "parts": [told]},
        {"role": "model", "parts": [{"text": "Ten"}]},
    ]


@pytest.mark.parametrize("name", ["langchain", "vercel's interface", "gemini"])
@pytest.mark.parametrize("place", ["messages", "values", "bare"])
def test_messages_of_frameworks_are_read_where_they_stand(tmp_path: Path, name: str, place: str) -> None:
    said = spelled(name)
    record: Any = {"messages": {"messages": said}, "values": {"values": {"messages": said}}, "bare": said}[place]
    path = tmp_path / "a.jsonl"
    path.write_text(text(record), encoding="utf-8")
    (found,) = deltah.read_traces(path)
    assert (found.question, found.prediction) == ("Tide?", "Ten")
    assert [(one.name, json.loads(one.arguments), one.result) for one in found.calls] == [("tide", {"day": 3}, "10:00")]


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"conversations": [{"from": "human", "value": "Tide?"}, {"from": "gpt", "value": "Ten"}]}, "ShareGPT"),
        ({"text": "Ten", "meta_info": {"output_token_logprobs": [[-0.1, 3, None]]}}, "SGLang's own /generate"),
        ({"content": "Ten", "completion_probabilities": []}, "llama.cpp's own /completion"),
        ({"_type": "table", "columns": ["prompt"], "data": [["Tide?"]]}, "a table of Weights & Biases"),
        ({"resourceLogs": []}, "logs of OpenTelemetry"),
        ("id,timestamp,name,user_id,input,output", "CSV"),
        ("INFO 11-24 10:00:00 logger.py:39] Received request chatcmpl-1", "the text log of a server"),
        ("2026-11-24 10:00:00 starting", "a text log"),
        (str({"messages": CONVERSATION}), "a print-out of Python"),
    ],
)
def test_a_format_that_is_not_read_is_named(tmp_path: Path, record: Any, named: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(record if isinstance(record, str) else text(record), encoding="utf-8")
    reader = deltah.read_traces(path)
    assert not list(reader)
    assert f"this is {named}, which is not read; " in reader.problems[0].reason

"""Logs of Anthropic's Messages API, through the public reader."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import deltah
from deltah.core.types import CallStatus, SegmentKind, StopReason, Trajectory

TIDE = {"type": "tool_use", "id": "toolu_9", "name": "tide_table", "input": {"harbour": "Quill Bay"}}


def result(value: Any, id: str = "toolu_9", **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id, "content": value} | fields


def answer(*parts: dict[str, Any], stop_reason: str = "end_turn") -> dict[str, Any]:
    return {
        "id": "msg_7",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": list(parts),
        "stop_reason": stop_reason,
        "usage": {"input_tokens": 9, "output_tokens": 4},
    }


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def said(role: str, *parts: Any) -> dict[str, Any]:
    return {"role": role, "content": parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts)}


def read(tmp_path: Path, *records: dict[str, Any]) -> list[Trajectory]:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    reader = deltah.read_traces(path)
    found = list(reader)
    assert not reader.problems, reader.problems[0]
    return found


def calls(trajectory: Trajectory) -> list[tuple[str, str, str | None]]:
    return [(call.id, call.name, call.result) for call in trajectory.calls]


def reasoning(trajectory: Trajectory) -> list[str | None]:
    return [s.text for s in trajectory.segments if s.kind is SegmentKind.REASONING]


def test_a_conversation_has_its_calls_results_and_answer(tmp_path: Path) -> None:
    (found,) = read(
        tmp_path,
        {
            "id": "c-4",
            "system": [text("Be short.")],
            "messages": [
                said("user", "High water at Quill Bay?"),
                said("assistant", {"type": "thinking", "thinking": "A table."}, text("I look."), TIDE),
                said("user", result([text("06:14 "), text("and 18:40")])),
                said("assistant", text("At 06:14.")),
            ],
        },
    )
    assert (found.id, found.question, found.prediction) == ("c-4", "High water at Quill Bay?", "At 06:14.")
    assert calls(found) == [("toolu_9", "tide_table", "06:14 and 18:40")]
    assert json.loads(found.calls[0].arguments) == {"harbour": "Quill Bay"}
    assert reasoning(found) == ["A table.", "I look.", "At 06:14."]
    assert found.segments[0].text == "Be short."


def test_an_error_is_what_the_log_says_it_is(tmp_path: Path) -> None:
    (found,) = read(
        tmp_path,
        {
            "messages": [
                said("user", "Tide?"),
                said("assistant", TIDE, TIDE | {"id": "toolu_10"}),
                said("user", result("no such harbour", is_error=True), result("06:14", "toolu_10", is_error=False)),
            ]
        },
    )
    assert [call.status for call in found.calls] == [CallStatus.ERROR, CallStatus.OK]


def test_pictures_that_differ_are_different_results(tmp_path: Path) -> None:
    def picture(data: str) -> list[dict[str, Any]]:
        return [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}]

    (found,) = read(
        tmp_path,
        {
            "messages": [
                said("user", "Look."),
                said("assistant", TIDE, TIDE | {"id": "b"}, TIDE | {"id": "c"}),
                said("user", result(picture("AAAA")), result(picture("BBBB"), "b"), result(picture("AAAA"), "c")),
            ]
        },
    )
    first, second, third = (call.result for call in found.calls)
    assert first == third != second


def test_a_tool_that_the_server_ran_ends_a_turn(tmp_path: Path) -> None:
    served = {"type": "server_tool_use", "id": "srv_1", "name": "web_search", "input": {"query": "tides"}}
    found_it = {"type": "web_search_tool_result", "tool_use_id": "srv_1", "content": [{"url": "u", "title": "t"}]}
    exchange = {
        "request": {"messages": [said("user", "Tide?")]},
        "response": answer(text("I search."), served, found_it, text("At 06:14.")),
    }
    (found,) = read(tmp_path, exchange)
    assert calls(found) == [("srv_1", "web_search", '[{"url":"u","title":"t"}]')]
    assert reasoning(found) == ["I search.", "At 06:14."]
    assert (found.prediction, found.stop_reason) == ("At 06:14.", StopReason.ANSWERED)

    follow_up = {
        "request": {
            "messages": [
                said("user", "Tide?"),
                said("assistant", text("I search."), served, found_it, text("At 06:14.")),
                said("user", "And low water?"),
            ]
        },
        "response": answer(text("At noon.")),
    }
    (joined,) = read(tmp_path, exchange, follow_up)
    assert calls(joined) == calls(found)
    assert reasoning(joined) == ["I search.", "At 06:14.", "At noon."]


def test_api_calls_of_one_conversation_are_joined(tmp_path: Path) -> None:
    history, first = [said("user", "Tide?")], answer(text("I look."), TIDE)
    (found,) = read(
        tmp_path,
        {
            "request": {"model": "claude-x", "system": "s", "messages": history},
            "response": first,
        },
        {
            "request": {
                "model": "claude-x",
                "system": "s",
                "messages": [*history, said("assistant", text("I look."), TIDE), said("user", result("06:14"))],
            },
            "response": answer(text("At 06:14."), stop_reason="max_tokens"),
        },
    )
    assert calls(found) == [("toolu_9", "tide_table", "06:14")]
    assert (found.model, found.stop_reason) == ("claude-x", StopReason.LENGTH)


def events() -> list[dict[str, Any]]:
    pieces = ['{"harb', 'our": "Quill', ' Bay"}']
    return [
        {"type": "message_start", "message": answer() | {"stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "I "}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "look."}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": TIDE | {"input": {}}},
        *(
            {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": piece}}
            for piece in pieces
        ),
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 4}},
        {"type": "message_stop"},
    ]


def as_text(chunks: Sequence[dict[str, Any]]) -> str:
    return "".join(f"event: {chunk['type']}\ndata: {json.dumps(chunk)}\n\n" for chunk in chunks)


@pytest.mark.parametrize("form", [list, as_text])
def test_streamed_events_are_put_together(tmp_path: Path, form: Any) -> None:
    (found,) = read(tmp_path, {"request": {"messages": [said("user", "Tide?")]}, "response": form(events())})
    assert calls(found) == [("toolu_9", "tide_table", None)]
    assert json.loads(found.calls[0].arguments) == {"harbour": "Quill Bay"}
    assert (reasoning(found), found.model, found.id) == (["I look."], "claude-x", "msg_7")


def test_a_result_of_the_batch_api_is_a_response(tmp_path: Path) -> None:
    (found,) = read(
        tmp_path, {"custom_id": "b-3", "result": {"type": "succeeded", "message": answer(text("Hm"), TIDE)}}
    )
    assert (found.id, len(found.calls)) == ("b-3", 1)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (
            {"request": {"messages": []}, "response": [*events()[:4], {"type": "error", "error": {}}]},
            "ends in an error",
        ),
        ({"messages": [], "response": {"type": "error", "stop_reason": "end_turn"}}, "it holds an error"),
        ({"messages": [], "response": {"content": 3, "stop_reason": "end_turn"}}, "expected a message of Anthropic's"),
    ],
)
def test_what_is_no_answer_is_a_problem(tmp_path: Path, record: dict[str, Any], reason: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(record), encoding="utf-8")
    reader = deltah.read_traces(path)
    assert not list(reader)
    assert reason in reader.problems[0].reason


def test_parts_are_read_wherever_messages_are(tmp_path: Path) -> None:
    """A log of another format, or an earlier record of one file, does not hide them."""
    plain = {"messages": [said("user", "Hi"), {"role": "assistant", "content": "Hello.", "tool_calls": None}]}
    mixed = {
        "messages": [
            said("user", "Tide?"),
            {
                "role": "assistant",
                "content": [text("I look."), TIDE],
                "tool_calls": [{"id": "toolu_9", "function": {"name": "tide_table", "arguments": "{}"}}],
            },
            {"role": "tool", "content": [{"type": "tool_result", "tool_use_id": "toolu_9", "content": "06:14"}]},
        ]
    }
    _, found = read(tmp_path, plain, mixed)
    assert calls(found) == [("toolu_9", "tide_table", "06:14")]


def session(*lines: tuple[str, Any, str]) -> list[dict[str, Any]]:
    """Lines of a session of Claude Code: role, content, id of the answer; one a second."""
    return [
        {
            "uuid": f"u{i}",
            "parentUuid": f"u{i - 1}",
            "sessionId": "s-1",
            "isSidechain": False,
            "type": role,
            "timestamp": f"2026-11-01T10:00:{i:02}.000Z",
            "message": {"role": role, "content": content} | ({"id": id, "type": "message"} if id else {}),
        }
        for i, (role, content, id) in enumerate(lines)
    ]


def test_a_session_of_claude_code_is_one_conversation(tmp_path: Path) -> None:
    other = TIDE | {"id": "toolu_10", "name": "moon"}
    lines = session(
        ("user", "Tide?", ""),
        ("assistant", [text("I look.")], "msg_1"),
        ("assistant", [TIDE], "msg_1"),
        ("user", [result("06:14")], ""),
        ("assistant", [other], "msg_1"),
        ("user", [result("denied", "toolu_10", is_error=True)], ""),
        ("assistant", [text("At 06:14.")], "msg_2"),
    )
    aside = [line | {"isSidechain": True, "agentId": "a1", "uuid": f"side-{line['uuid']}"} for line in lines[:2]]
    others = [{"type": "queue-operation", "sessionId": "s-1"}, {"type": "summary", "leafUuid": "u6"}]
    found, side = read(tmp_path, *others, *lines, *aside)
    assert (found.id, found.prediction, side.id, len(side.calls)) == ("s-1", "At 06:14.", "s-1/a1", 0)
    assert calls(found) == [("toolu_9", "tide_table", "06:14"), ("toolu_10", "moon", "denied")]
    assert [(call.turn, call.status) for call in found.calls] == [(0, CallStatus.OK), (0, CallStatus.ERROR)]
    assert reasoning(found) == ["I look.", "At 06:14."]


def test_results_that_nothing_claims_are_counted(tmp_path: Path) -> None:
    lost = {
        "messages": [
            said("user", "Tide?"),
            said("assistant", "Hm"),
            said("user", result("06:14")),
            said("assistant", "At six."),
        ]
    }
    (found,) = read(tmp_path, lost)
    assert (len(found.calls), found.metadata["results_without_call"]) == (0, 1)
    from typer.testing import CliRunner

    from deltah.cli.app import app

    done = CliRunner().invoke(app, ["score", str(tmp_path / "log.jsonl")])
    assert "No tool call was found, but 1 result of a tool" in done.output.replace("\n", " ")


def codex() -> list[dict[str, Any]]:
    """Lines of a session of Codex: items of OpenAI's Responses, and what stands around them."""

    def call(id: str, **fields: Any) -> dict[str, Any]:
        return {"type": "function_call", "call_id": id, "name": "shell", "arguments": '{"command": "ls"}'} | fields

    def output(id: str, text: Any) -> dict[str, Any]:
        return {"type": "function_call_output", "call_id": id, "output": text}

    say = {"type": "message", "role": "assistant"}
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Files?"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Look."}], "encrypted_content": "x"},
        call("a"),
        call("b", arguments='{"command": "pwd"}'),
        output("a", "a.py"),
        output("b", "/home"),
        {"type": "web_search_call", "id": "w", "action": {"query": "tides"}},
        say | {"content": [{"type": "output_text", "text": "One file."}]},
    ]
    around = [("session_meta", {"id": "s-9"}), ("turn_context", {"model": "m-2"}), ("event_msg", {"type": "x"})]
    lines = [*around, *(("response_item", item) for item in items)]
    return [{"timestamp": f"2026-11-01T10:00:{i:02}Z", "type": t, "payload": p} for i, (t, p) in enumerate(lines)]


def test_a_session_of_codex_is_one_conversation(tmp_path: Path) -> None:
    (found,) = read(tmp_path, *codex())
    assert (found.id, found.model, found.question, found.prediction) == ("s-9", "m-2", "Files?", None)
    assert [(c.name, c.arguments, c.result, c.turn) for c in found.calls] == [
        ("shell", '{"command": "ls"}', "a.py", 0),
        ("shell", '{"command": "pwd"}', "/home", 0),
        ("web_search", '{"query":"tides"}', None, 1),
    ]
    assert reasoning(found) == ["Look.", "One file."]

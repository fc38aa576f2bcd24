"""Ollama's native chat, against entropies computed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deltah
from deltah.core.types import StopReason

from .chat import token

LN2 = float(np.log(2.0))
EVEN, HALVES = (0.25, 0.25, 0.25, 0.25), (0.5, 0.5, 0.0, 0.0)
"""Of a vocabulary of four: H = 2 ln 2 and ln 2 nats."""
ASKED = {"role": "user", "content": "Which bus goes to Tolm?"}
CALLED = {"function": {"name": "timetable", "arguments": {"to": "Tolm"}}}
ANSWERED = {"role": "tool", "tool_name": "timetable", "content": "bus 14"}


def response(content: str, tokens: list[dict[str, Any]], *calls: dict[str, Any], **fields: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": content} | ({"tool_calls": [*calls]} if calls else {})
    head = {"model": "qwen3:4b", "created_at": "2026-03-01T10:00:02Z", "message": said, "done": True}
    return head | {"done_reason": "stop", "total_duration": 2_000_000_000, "logprobs": tokens} | fields


FIRST = response("I see", [token("I", EVEN), token(" see", EVEN)], CALLED)
LAST = response("14", [token("14", HALVES)], created_at="2026-03-01T10:00:06.5Z", total_duration=1_500_000_000)
HISTORY = [ASKED, FIRST["message"], ANSWERED]
"""H(r_0) = 2 ln 2, H(r_1) = ln 2: the call changes it by -ln 2. It began at 2 s, the next request at 6.5 - 1.5 = 5."""


def read(tmp_path: Path, *records: dict[str, Any]) -> list[deltah.Trajectory]:
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    reader = deltah.read_traces(file, vocab_size=4)
    found = [*reader]
    assert reader.problems == []
    return found


def exchange(messages: list[Any], answered: Any, **request: Any) -> dict[str, Any]:
    return {"request": {"model": "qwen3:4b", "messages": messages} | request, "response": answered}


def test_exchanges_are_one_conversation_with_its_call(tmp_path: Path) -> None:
    (found,) = read(tmp_path, exchange([ASKED], FIRST), exchange(HISTORY, LAST))
    assert deltah.score(found).value == pytest.approx([-LN2])
    (call,) = found.calls
    assert (call.name, call.arguments, call.result) == ("timetable", '{"to":"Tolm"}', "bus 14")
    assert call.duration_s == pytest.approx(3.0)
    assert (found.model, found.prediction) == ("qwen3:4b", "14")


def test_exchanges_under_other_names_keep_their_log_probabilities(tmp_path: Path) -> None:
    both = exchange([ASKED], FIRST), exchange(HISTORY, LAST)
    named = [{"input": one["request"], "output": one["response"]} for one in both]
    (found,) = read(tmp_path, *named)
    assert deltah.score(found).value == pytest.approx([-LN2])


def test_the_temperature_stands_in_the_options(tmp_path: Path) -> None:
    (found,) = read(tmp_path, exchange([ASKED], LAST, options={"temperature": 1.0, "num_ctx": 4096}))
    assert found.temperature == 1.0


def test_results_of_parallel_calls_are_matched_by_name(tmp_path: Path) -> None:
    both = [CALLED, {"function": {"name": "fares", "arguments": {}}}]
    first = response("", [], *both)
    history = [ASKED, first["message"], {"role": "tool", "tool_name": "timetable", "content": "bus 14"}]
    history.append({"role": "tool", "tool_name": "fares", "content": "2.40"})
    (found,) = read(tmp_path, exchange([ASKED], first), exchange(history, LAST))
    assert [(c.name, c.result) for c in found.calls] == [("timetable", "bus 14"), ("fares", "2.40")]


def chunks() -> list[dict[str, Any]]:
    """`FIRST` as Ollama streams it."""
    head = {"model": "qwen3:4b", "created_at": "2026-03-01T10:00:02Z"}
    pieces = [({"content": "I"}, [token("I", EVEN)]), ({"content": " see"}, [token(" see", EVEN)])]
    said = [head | {"message": {"role": "assistant"} | m, "done": False, "logprobs": t} for m, t in pieces]
    said.append(head | {"message": {"role": "assistant", "content": "", "tool_calls": [CALLED]}, "done": False})
    return [*said, head | {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}]


@pytest.mark.parametrize("form", ["list", "text", "lines"])
def test_streams_are_put_together(tmp_path: Path, form: str) -> None:
    answered = chunks() if form == "list" else "\n".join(map(json.dumps, chunks()))
    (found,) = read(tmp_path, *(chunks() if form == "lines" else [exchange([ASKED], answered)]))
    assert found.entropy == pytest.approx([2 * LN2, 2 * LN2])
    assert (found.calls[0].name, found.calls[0].arguments) == ("timetable", '{"to":"Tolm"}')
    assert found.stop_reason is StopReason.UNANSWERED_CALL


def test_thinking_is_reasoning_and_an_answer_without_log_probabilities_is_read(tmp_path: Path) -> None:
    plain = response("14", [], message={"role": "assistant", "content": "14", "thinking": "The table says 14."})
    (found,) = read(tmp_path, exchange([ASKED], plain | {"logprobs": None}))
    assert [s.text for s in found.segments] == [ASKED["content"], "The table says 14.", "14"]
    assert found.entropy is None


def test_an_error_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text(json.dumps(exchange([ASKED], {"error": "model not found", "done": True})))
    reader = deltah.read_traces(file)
    assert [*reader] == []
    assert reader.n_problems == 1

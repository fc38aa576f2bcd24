"""OpenAI Responses and NeMo Gym rollouts, against entropies computed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deltah
from deltah.core.types import CallStatus, SegmentKind, SpanQuality, StopReason
from deltah.traces import TraceReader

from .chat import token

EVEN, LOADED, SURE = (0.25, 0.25, 0.25, 0.25), (0.5, 0.25, 0.25, 0.0), (1.0, 0.0, 0.0, 0.0)
"""Of a vocabulary of four: H = ln 4 = 1.3863, 1.5 ln 2 = 1.0397 and 0 nats."""
LN2 = float(np.log(2.0))


def text(*words: tuple[str, tuple[float, ...]]) -> dict[str, Any]:
    """The output item of a message with log-probabilities over the whole vocabulary."""
    said = "".join(word for word, _ in words)
    part = {"type": "output_text", "text": said, "annotations": [], "logprobs": [token(w, p) for w, p in words]}
    return {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [part]}


def call(id: str = "f1", name: str = "weather", **arguments: Any) -> dict[str, Any]:
    return {"type": "function_call", "id": f"fc_{id}", "call_id": id, "name": name, "arguments": json.dumps(arguments)}


def output(text: Any, id: str = "f1") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": id, "output": text}


ASKED = {"role": "user", "content": "Is it raining in Ulmfeld?"}
FIRST = [text(("I ", EVEN), ("check", EVEN)), call(town="Ulmfeld")]
LAST = [text(("Yes", LOADED), (".", SURE))]
"""H(r_0) = ln 4 = 2 ln 2, H(r_1) = (1.5 ln 2 + 0) / 2 = 0.75 ln 2: the call changes it by -1.25 ln 2."""
CHANGE = -1.25 * LN2


def exchange(asked: Any, answered: list[dict[str, Any]], id: str = "resp_a", **fields: Any) -> dict[str, Any]:
    request = {"model": "gpt-4.1", "input": asked, "include": ["message.output_text.logprobs"], "top_logprobs": 4}
    response = {"id": id, "object": "response", "status": "completed", "model": "gpt-4.1", "temperature": 1.0}
    return {"vocab_size": 4, "request": request, "response": response | {"output": answered}} | fields


def read(tmp_path: Path, *records: dict[str, Any]) -> TraceReader:
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return deltah.read_traces(file)


def only(tmp_path: Path, *records: dict[str, Any]) -> deltah.Trajectory:
    reader = read(tmp_path, *records)
    found = [*reader]
    assert reader.problems == []
    (one,) = found
    return one


def test_two_exchanges_are_one_conversation_with_a_change_of_entropy(tmp_path: Path) -> None:
    found = only(tmp_path, exchange([ASKED], FIRST), exchange([ASKED, *FIRST, output("rain")], LAST, "resp_b"))
    assert deltah.score(found).value == pytest.approx([CHANGE])
    (issued,) = found.calls
    assert (issued.id, issued.name, issued.arguments, issued.result) == ("f1", "weather", '{"town": "Ulmfeld"}', "rain")
    assert (found.question, found.prediction, found.temperature) == (ASKED["content"], "Yes.", 1.0)


@pytest.mark.parametrize("names", [("input", "output"), ("llm_request", "llm_response")])
def test_exchanges_under_other_names_are_joined(tmp_path: Path, names: tuple[str, str]) -> None:
    logged = exchange([ASKED], FIRST), exchange([ASKED, *FIRST, output("rain")], LAST, "resp_b")
    asked, answered = names
    found = only(tmp_path, *({asked: e["request"], answered: e["response"], "vocab_size": 4} for e in logged))
    assert deltah.score(found).value == pytest.approx([CHANGE])


def test_input_may_be_a_text_and_instructions_come_first(tmp_path: Path) -> None:
    record = exchange("Is it raining?", LAST)
    record["request"]["instructions"] = "Answer with yes or no."
    found = only(tmp_path, record)
    assert [s.text for s in found.segments if s.text is not None] == ["Answer with yes or no.", "Is it raining?"]
    assert found.question == "Is it raining?"


def test_parallel_calls_are_one_round_and_results_in_parts_are_text(tmp_path: Path) -> None:
    first = [FIRST[0], call("f1", town="Ulmfeld"), call("f2", town="Sarn")]
    parts = [{"type": "input_text", "text": "dr"}, {"type": "input_text", "text": "y"}]
    found = only(
        tmp_path, exchange([ASKED], first), exchange([ASKED, *first, output(parts, "f2"), output("rain")], LAST)
    )
    assert [(c.turn, c.result) for c in found.calls] == [(0, "rain"), (0, "dry")]
    assert deltah.score(found).value == pytest.approx([CHANGE])


def test_reasoning_without_tokens_is_text_and_the_borders_are_approximate(tmp_path: Path) -> None:
    thought = {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "A town."}]}
    found = only(tmp_path, exchange([ASKED], [thought, *FIRST]))
    assert found.segments[1].text == "A town."
    assert found.spans is SpanQuality.APPROXIMATE


def test_calls_that_the_server_answers_are_calls_with_results(tmp_path: Path) -> None:
    served = {"type": "mcp_call", "id": "m1", "name": "radar", "arguments": "{}", "output": "rain", "error": None}
    failed = served | {"id": "m2", "output": None, "error": "timeout"}
    found = only(tmp_path, exchange([ASKED], [FIRST[0], served, failed, *LAST]))
    assert [(c.name, c.result, c.status, c.turn) for c in found.calls] == [
        ("radar", "rain", CallStatus.OK, 0),
        ("radar", "timeout", CallStatus.ERROR, 0),
    ]
    assert deltah.score(found).value == pytest.approx([CHANGE])


def test_annotations_of_tools_are_kept(tmp_path: Path) -> None:
    record = exchange([ASKED], FIRST)
    hints = {"readOnlyHint": True, "idempotentHint": True}
    record["request"]["tools"] = [{"type": "function", "name": "weather", "annotations": hints}]
    assert only(tmp_path, record).metadata["tool_kinds"] == '{"weather": "read"}'


def test_a_response_may_end_with_the_result_of_the_servers_tool(tmp_path: Path) -> None:
    served = {"type": "code_interpreter_call", "id": "i", "code": "1 + 1", "outputs": [{"type": "logs", "logs": "2"}]}
    found = only(tmp_path, exchange([ASKED], [FIRST[0], served]))
    (ran,) = found.calls
    assert (ran.name, ran.arguments, ran.status) == ("code_interpreter", "1 + 1", CallStatus.OK)
    assert ran.result is not None
    assert "2" in ran.result


def test_built_in_and_custom_tools_are_named(tmp_path: Path) -> None:
    custom = {"type": "custom_tool_call", "call_id": "c", "name": "sql", "input": "SELECT 1"}
    web = {"type": "web_search_call", "id": "w", "status": "completed", "action": {"type": "search", "query": "rain"}}
    found = only(tmp_path, exchange([ASKED], [custom, web]))
    assert [(c.name, c.arguments) for c in found.calls] == [
        ("sql", "SELECT 1"),
        ("web_search", '{"type":"search","query":"rain"}'),
    ]


@pytest.mark.parametrize("form", ["bare", "batch", "events", "event stream", "items of a stream"])
def test_every_form_of_a_response_is_read(tmp_path: Path, form: str) -> None:
    record = exchange([ASKED], FIRST)
    done = [{"type": "response.created", "response": record["response"] | {"output": []}}]
    done += [{"type": "response.output_item.done", "output_index": i, "item": item} for i, item in enumerate(FIRST)]
    if form == "bare":
        record = record["response"] | {"vocab_size": 4}
    elif form == "batch":
        record = {"vocab_size": 4, "custom_id": "b", "response": {"status_code": 200, "body": record["response"]}}
    elif form == "items of a stream":
        record["response"] = done
    else:
        events = [*done, {"type": "response.completed", "response": record["response"]}]
        lines = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
        record["response"] = events if form == "events" else lines
    found = only(tmp_path, record)
    assert found.calls[0].name == "weather"
    assert found.entropy == pytest.approx([2 * LN2, 2 * LN2])
    assert found.stop_reason is StopReason.UNANSWERED_CALL


def test_a_stream_of_which_each_line_is_an_event_is_read_once(tmp_path: Path) -> None:
    whole = exchange([ASKED], FIRST)["response"]
    events = [
        {"type": "response.created", "response": whole | {"output": []}},
        {"type": "response.output_text.delta", "item_id": "m", "delta": "I "},
        {"type": "response.output_item.done", "output_index": 0, "item": FIRST[0]},
        {"type": "response.completed", "response": whole},
    ]
    found = only(tmp_path, *(event | {"sequence_number": i} for i, event in enumerate(events)))
    assert [call.name for call in found.calls] == ["weather"]
    assert len(found) == 2


def test_a_chain_of_responses_is_one_conversation(tmp_path: Path) -> None:
    first, other = exchange([ASKED], FIRST), exchange("Elsewhere?", FIRST, "resp_x")
    second, third = exchange([output("rain")], LAST, "resp_b"), exchange("And tomorrow?", LAST, "resp_c")
    second["request"]["previous_response_id"] = "resp_a"
    third["request"]["previous_response_id"] = "resp_b"
    reader = read(tmp_path, first, other, second, third)
    chain, alone = reader
    assert (chain.calls[0].result, alone.calls[0].result) == ("rain", None)
    assert deltah.score(chain).value == pytest.approx([CHANGE])
    assert [s.text for s in chain.segments if s.kind is SegmentKind.PROMPT] == [ASKED["content"], "And tomorrow?"]
    assert reader.n_unjoined == 0


def test_a_conversation_that_the_server_keeps_is_one_and_gives_its_id(tmp_path: Path) -> None:
    first, second = exchange([ASKED], FIRST), exchange([output("rain")], LAST, "resp_b")
    for record in (first, second):
        record["request"]["conversation"] = {"id": "conv_9"}
    found = only(tmp_path, first, second)
    assert found.id == "conv_9"
    assert deltah.score(found).value == pytest.approx([CHANGE])


def test_a_response_that_was_cut_off_says_so(tmp_path: Path) -> None:
    record = exchange([ASKED], LAST)
    record["response"] |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    assert only(tmp_path, record).stop_reason is StopReason.LENGTH


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"output": [], "status": "failed", "error": {"message": "overloaded"}}, "it holds an error"),
        ({"output": []}, "nothing to measure"),
    ],
)
def test_responses_without_a_message_are_problems(tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    record = exchange([ASKED], LAST)
    record["response"] |= changed
    reader = read(tmp_path, record)
    assert [*reader] == []
    assert reason in reader.problems[0].reason


def rollout(reward: Any, *items: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """One row of NeMo Gym's `rollouts.jsonl`."""
    ids = {"prompt_token_ids": [1], "generation_token_ids": [2, 3], "generation_log_probs": [-0.1, -0.2]}
    response = {"id": "r", "object": "response", "model": "policy", "output": [item | ids for item in items]}
    return {"responses_create_params": {"input": [ASKED]}, "response": response, "reward": reward} | fields


def test_a_nemo_gym_rollout_has_calls_results_and_its_reward(tmp_path: Path) -> None:
    items = (call(town="Ulmfeld"), output("rain"), call("f2", town="Ulmfeld"), output("rain", "f2"))
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Yes."}]}
    found = only(tmp_path, rollout(0.0, *items, said, _ng_task_index=3, _ng_rollout_index=1, expected_answer="Yes."))
    assert (found.id, found.group_id, found.outcome, found.model) == ("3/1", "3", 0.0, "policy")
    assert [(c.turn, c.result) for c in found.calls] == [(0, "rain"), (1, "rain")]
    assert (found.prediction, found.golden_answers, found.entropy) == ("Yes.", ("Yes.",), None)


def test_log_probabilities_of_a_nemo_gym_message_are_measured(tmp_path: Path) -> None:
    row = rollout(1.0, FIRST[0], FIRST[1], output("rain"), LAST[0])
    file = tmp_path / "rollouts.jsonl"
    file.write_text(json.dumps(row))
    (found,) = deltah.read_traces(file, vocab_size=4)
    assert deltah.score(found).value == pytest.approx([CHANGE])

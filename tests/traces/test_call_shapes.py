"""Calls and results in every shape that clients write, and what answers nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import deltah
from deltah.calls.notes import notes_on
from deltah.core.types import StopReason, Trajectory
from deltah.errors import DataError

from .chat import assistant, call, decode, line, result, user

FIND = {"place": "Velm"}


def read(*messages: dict[str, Any], **fields: Any) -> Trajectory:
    return decode(line([user(), *messages], **fields))


def calling(*calls: dict[str, Any]) -> dict[str, Any]:
    return assistant(None, content="Hm", tool_calls=list(calls))


def answering(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "tool", "content": text} | fields


@pytest.mark.parametrize(
    "shape",
    [
        {"id": "7", "name": "find", "arguments": json.dumps(FIND)},
        {"id": "7", "name": "find", "arguments": FIND},
        {"id": "7", "type": "function", "name": "find", "parameters": FIND},
        {"id": "7", "type": "tool_call", "name": "find", "args": FIND},
        {"id": "7", "name": "find", "input": FIND},
        {"id": "7", "tool_name": "find", "tool_input": FIND},
        {"id": "7", "function": "find", "arguments": FIND},
        {"id": "7", "function": {"name": "find", "parameters": FIND}},
        {"id": "7", "name": "find", "function": {"arguments": FIND}},
        {"id": "7", "type": "custom", "custom": {"name": "find", "input": json.dumps(FIND)}},
        {"call_id": "7", "name": "find", "arguments": FIND},
        {"tool_call_id": "7", "function": {"name": "find", "arguments": FIND}},
        {"toolCallId": "7", "toolName": "find", "args": FIND},
        {"id": "7", "tool": "find", "params": FIND},
        {"id": "7", "tool": "find", "toolInput": FIND},
        {"id": "7", "function_name": "find", "kwargs": FIND},
        {"id": "7", "function": {"name": "find", "kwargs": FIND}},
        {"id": "7", "function": {"name": "find"}, "params": FIND},
    ],
)
def test_name_and_arguments_come_out_wherever_they_stand(shape: dict[str, Any]) -> None:
    [found] = read(calling(shape), answering("south", tool_call_id="7"), assistant(None, content="South.")).calls
    assert (found.id, found.name, json.loads(found.arguments)) == ("7", "find", FIND)
    assert found.result == "south"


def test_different_calls_without_a_function_are_not_equal(tmp_path: Path) -> None:
    first, second = ({"id": i, "name": name, "arguments": "{}"} for i, name in (("a", "find"), ("b", "list")))
    messages = [
        calling(first),
        answering("none", tool_call_id="a"),
        calling(second),
        answering("none", tool_call_id="b"),
    ]
    (tmp_path / "log.jsonl").write_bytes(line([user(), *messages]))
    table = deltah.read_calls(tmp_path / "log.jsonl")
    assert table.sql("SELECT tool FROM calls ORDER BY index").fetchall() == [("find",), ("list",)]
    assert table.sql("SELECT DISTINCT waste_level FROM calls").fetchall() == [("none",)]


@pytest.mark.parametrize("kept", [lambda calls: calls[0], json.dumps, lambda calls: json.dumps(calls[0])])
def test_one_call_alone_or_as_text_is_a_list_of_it(kept: Any) -> None:
    message = assistant(None, content="Hm", tool_calls=kept([call("tide", "{}", "a")]))
    [found] = read(message, result("low", "a")).calls
    assert (found.id, found.name, found.result) == ("a", "tide", "low")


def test_ids_may_be_numbers() -> None:
    message = calling({"id": 7, "function": {"name": "tide", "arguments": "{}"}})
    [found] = read(message, {"role": "tool", "tool_call_id": 7, "content": "low"}).calls
    assert (found.id, found.result) == ("7", "low")


def test_a_call_that_is_spelled_in_the_thinking_alone_is_a_call() -> None:
    thought = 'Look.\n<tool_call>{"name": "tide", "arguments": {}}</tool_call>'
    [found] = read(assistant(None, content="", reasoning_content=thought), {"role": "tool", "content": "low"}).calls
    assert (found.name, found.result) == ("tide", "low")


@pytest.mark.parametrize("role", ["tool", "function"])
def test_results_without_ids_go_by_the_name_of_their_tool(role: str) -> None:
    calls = [{"function": {"name": name, "arguments": "{}"}} for name in ("tide", "wind", "tide")]
    given = [("wind", "strong"), ("tide", "low"), ("tide", "high")]
    results = [{"role": role, "name": name, "content": text} for name, text in given]
    assert [c.result for c in read(calling(*calls), *results).calls] == ["low", "strong", "high"]


@pytest.mark.parametrize("field", ["id", "call_id", "tool_use_id", "toolCallId", "toolUseId", "tool_name", "toolName"])
def test_results_in_another_order_go_by_the_field_that_names_their_call(field: str) -> None:
    named = "name" in field.lower()
    keys = ("tide", "wind") if named else ("k1", "k2")
    calls = [call(name, "{}", None if named else key) for name, key in zip(("tide", "wind"), keys, strict=True)]
    found = read(calling(*calls), answering("gale", **{field: keys[1]}), answering("low", **{field: keys[0]})).calls
    assert [one.result for one in found] == ["low", "gale"]


@pytest.mark.parametrize(
    ("called", "answered"),
    [
        (("tools.tide", "tools.wind"), ({"name": "tide"}, {"name": "wind"})),
        (("tide", "wind"), ({"name": "mcp__sea__tide"}, {"name": "mcp__sea__wind"})),
        (("tide", "wind"), ({"tool_call_id": "tide"}, {"tool_call_id": "wind"})),
        (("tide", "wind"), ({"tool_call_id": "tools.tide:0"}, {"tool_call_id": "tools.wind:1"})),
    ],
)
def test_results_go_by_a_name_with_or_without_its_name_space(called: Any, answered: Any) -> None:
    calls = [call(name, "{}", None) for name in called]
    found = read(calling(*calls), answering("gale", **answered[1]), answering("low", **answered[0])).calls
    assert [one.result for one in found] == ["low", "gale"]


@pytest.mark.parametrize("failed", [True, False])
def test_a_result_says_whether_the_tool_failed(failed: bool) -> None:
    [found] = read(calling(call("tide", "{}", "k")), answering("splash", tool_call_id="k", isError=failed)).calls
    assert found.status == ("error" if failed else "ok")


@pytest.mark.parametrize(("fields", "level"), [({"payload": {"day": 1}}, "none"), ({"args": {"day": 1}}, "likely")])
def test_a_call_whose_arguments_are_not_known_equals_no_other(
    fields: dict[str, Any], level: str, tmp_path: Path
) -> None:
    messages = [
        message
        for id in ("k1", "k2")
        for message in (calling({"id": id, "name": "tide"} | fields), answering("low", tool_call_id=id))
    ]
    (tmp_path / "log.jsonl").write_bytes(line([user(), *messages]))
    table = deltah.read_calls(tmp_path / "log.jsonl", tools={"tide": "read"})
    assert table.sql("SELECT waste_level FROM calls ORDER BY index").fetchall() == [("none",), (level,)]


@pytest.mark.parametrize(
    "answer",
    [
        "<html><body>504 Gateway Time-out</body></html>",
        "\n<!DOCTYPE html><title>Blocked</title>",
        "no healthy upstream",
        "503 Service Unavailable",
        {"message": "Too many tokens", "code": 429},
    ],
)
def test_what_a_proxy_sends_is_no_answer(answer: Any, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"request": {"messages": [user()]}, "response": answer}), encoding="utf-8")
    with pytest.raises(DataError, match="field response"):
        deltah.read_calls(path)
    path.write_text(json.dumps({"request": {"messages": [user()]}, "response": "Upstream, by ship."}), encoding="utf-8")
    assert [one.prediction for one in deltah.read_traces(path)] == ["Upstream, by ship."]


def test_an_older_function_call_is_answered_by_its_role() -> None:
    message = assistant(None, content="", function_call={"name": "tide", "arguments": "{}"})
    [found] = read(message, {"role": "function", "name": "tide", "content": "low"}).calls
    assert found.result == "low"


def test_results_of_unknown_ids_go_by_name_then_by_order() -> None:
    calls = [call("tide", "{}", "a"), call("wind", "{}", "b")]
    named = [answering("strong", tool_call_id="x", name="wind"), answering("low", tool_call_id="y", name="tide")]
    assert [c.result for c in read(calling(*calls), *named).calls] == ["low", "strong"]
    nameless = [answering("low", tool_call_id="x"), answering("strong", tool_call_id="y")]
    assert [c.result for c in read(calling(*calls), *nameless).calls] == ["low", "strong"]
    # An id that another result names is not free for a foreign one.
    mixed = [answering("?", tool_call_id="x"), answering("low", tool_call_id="a")]
    found = read(calling(call("tide", "{}", "a")), *mixed)
    assert found.calls[0].result == "low"
    assert found.metadata["results_without_call"] == 1


def test_a_result_in_parts_is_one_text() -> None:
    parts = [{"type": "text", "text": "low "}, {"type": "text", "text": "tide"}]
    [found] = read(calling(call()), {"role": "tool", "tool_call_id": "c1", "content": parts}).calls
    assert found.result == "low tide"


SPELLED = '<tool_call>\n{"name": "tide", "arguments": {}}\n</tool_call>\n<tool_call>{"name": "wind"}</tool_call>'


@pytest.mark.parametrize(
    ("text", "results"),
    [
        ("<tool_response>\nlow\n</tool_response>\n<tool_response>\nstrong\n</tool_response>", ["low", "strong"]),
        ("<tool_response>low</tool_response>", ["low", None]),
        ("<tool_result>low</tool_result>\n<function_results>strong</function_results>", ["low", "strong"]),
        (
            '<tool_response>{"name": "wind", "content": "strong"}</tool_response><tool_response>'
            '{"name": "tide", "content": "low"}</tool_response>',
            ['{"name": "tide", "content": "low"}', '{"name": "wind", "content": "strong"}'],
        ),
        ("No blocks.", [None, None]),
    ],
)
def test_marked_blocks_of_a_user_answer_calls_that_wait(text: str, results: list[str | None]) -> None:
    found = read(assistant(None, content=SPELLED), user(text), assistant(None, content="Done."))
    assert [c.result for c in found.calls] == results
    assert found.stop_reason is (StopReason.ANSWERED if all(results) else StopReason.UNANSWERED_CALL)


def test_what_a_user_says_beside_a_block_is_kept() -> None:
    found = read(assistant(None, content=SPELLED), user("Here: <tool_response>low</tool_response> Go on."))
    texts = [(s.kind.value, s.text) for s in found.segments][-3:]
    assert texts == [("prompt", "Here:"), ("result", "low"), ("prompt", "Go on.")]


def test_a_block_that_no_call_waits_for_is_text() -> None:
    found = read(user("Write <tool_response>x</tool_response>!"), assistant(None, content="x"))
    assert not found.calls
    assert found.segments[1].text == "Write <tool_response>x</tool_response>!"


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ('{"name": "tide", "parameters": {"at": "Velm"}}', "tide"),  # Llama 3 writes no mark
        ('{"type": "function", "name": "tide", "parameters": {"at": "Velm"}}<|eom_id|>', "tide"),
        ('[{"name": "tide", "arguments": {"at": "Velm"}}]', "tide"),
        ("<function=tide>\n<parameter=at>\nVelm\n</parameter>\n</function>", "tide"),
        ("<tool_call>{'name': 'tide', 'arguments': {'at': 'Velm'}}</tool_call>", "tide"),
        ('<|channel|>commentary to=functions.tide <|constrain|>json<|message|>{"at": "Velm"}<|call|>', "tide"),
        ('<|start|>assistant to=functions.tide<|channel|>commentary<|message|>{"at": "Velm"}', "tide"),
    ],
)
def test_more_spellings_of_calls_in_the_content(content: str, name: str) -> None:
    [found] = read(assistant(None, content=content), {"role": "ipython", "content": "low"}).calls
    assert (found.name, json.loads(found.arguments)["at"], found.result) == (name, "Velm", "low")


def test_json_in_prose_is_a_call_where_a_result_follows() -> None:
    said = assistant(None, content='Let me see.\n{"name": "tide", "parameters": {"at": "Velm"}}')
    [found] = read(said, {"role": "ipython", "content": "low"}).calls
    assert (found.name, found.result) == ("tide", "low")
    assert not read(said).calls
    assert not read(assistant(None, content='A {"name": "tide"}'), {"role": "tool", "content": "low"}).calls


def test_json_that_is_an_answer_is_no_call() -> None:
    assert not read(assistant(None, content='{"name": "Velm", "height": 3}')).calls
    assert not read(assistant(None, content='{"name": "Velm", "arguments": {}, "height": 3}')).calls


def test_results_that_answer_no_call_are_counted(tmp_path: Path) -> None:
    messages = [
        user(),
        calling(call()),
        result("low"),
        result("?", "x"),
        result("?", "y"),
        assistant(None, content="Low."),
    ]
    (tmp_path / "log.jsonl").write_bytes(line(messages))
    table = deltah.read_calls(tmp_path / "log.jsonl")
    assert table.log is not None
    assert "No call was found for 2 results of tools: they are in no number." in notes_on(table, table.log)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (
            [assistant(None, content="Hm"), result("low"), result("high")],
            "No tool call was found, but 2 results of tools",
        ),
        (
            [assistant(None, content=[{"type": "my_tool_step", "id": "1"}])],
            "Parts of messages were not read as calls or results: my_tool_step.",
        ),
    ],
)
def test_a_conversation_of_results_without_calls_says_so(
    messages: list[dict[str, Any]], said: str, tmp_path: Path
) -> None:
    (tmp_path / "log.jsonl").write_bytes(line([user(), *messages]))
    table = deltah.read_calls(tmp_path / "log.jsonl")
    assert table.log is not None
    notes = notes_on(table, table.log)
    assert [note for note in notes if note.startswith(said)]
    assert not [note for note in notes if "nothing to score" in note]


@pytest.mark.parametrize(
    "grade",
    [
        {"reward": 0.0},
        {"score": 0},
        {"is_correct": False},
        {"correct": 0},
        {"reward": "0"},
        {"metadata": {"reward": 0.0}},
    ],
)
def test_a_grade_that_the_log_states_beats_ours_and_both_are_kept(grade: dict[str, Any], tmp_path: Path) -> None:
    data = line([user(), calling(call()), result("low"), assistant(None, content="low")], answer="low", **grade)
    (tmp_path / "log.jsonl").write_bytes(data)
    table = deltah.read_calls(tmp_path / "log.jsonl")
    [(outcome, grader, own)] = table.sql(
        "SELECT outcome, grader, metadata->>'own_outcome' FROM trajectories"
    ).fetchall()
    assert (outcome, grader, own) == (0.0, "stated", "1.0")


def test_a_grade_outside_0_1_is_kept_and_ours_counts(tmp_path: Path) -> None:
    data = line([user(), calling(call()), result("low"), assistant(None, content="low")], answer="low", reward=2.5)
    (tmp_path / "log.jsonl").write_bytes(data)
    table = deltah.read_calls(tmp_path / "log.jsonl")
    query = "SELECT outcome, grader, metadata->>'score_outside_0_1' FROM trajectories"
    assert table.sql(query).fetchall() == [(1.0, "qa", "2.5")]

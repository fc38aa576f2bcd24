"""What clients do to the history, one habit a test: what joins it, what must not, and what is said of it."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from growth import growth
from typer.testing import CliRunner

import deltah
from deltah.cli.app import app
from deltah.core.types import Trajectory
from deltah.traces import TraceReader, read_traces
from deltah.traces.joining import Joiner

from .chat import assistant, call, import_as, result, token, user

Message = dict[str, Any]
Line = dict[str, Any]
QUAY, MOLE = "call_9fQ2xLm4Tz", "call_b7Rw80kcVd"
"""Ids that say more than a count."""


def turn(text: str, *calls: Message, thinking: str | None = None) -> Message:
    said = assistant([token(text)], content=text) if text else assistant(None, content=text)
    extra = {"reasoning_content": thinking} if thinking is not None else {}
    return said | ({"tool_calls": list(calls)} if calls else {}) | extra


def log_of(messages: list[Message], **fields: Any) -> list[Line]:
    """One API call for each assistant message, the history repeated word for word."""
    lines = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            history = [{k: v for k, v in m.items() if k != "logprobs"} for m in messages[:i]]
            reply = {k: v for k, v in message.items() if k != "logprobs"}
            choice = {"index": 0, "message": reply, "logprobs": message.get("logprobs"), "finish_reason": "stop"}
            lines.append({"request": {"messages": history}, "response": {"id": f"r{i}", "choices": [choice]}} | fields)
    return copy.deepcopy(lines)


def tide(
    question: str = "When is high tide at Larkholm?", id: str | None = QUAY, text: str = "Let me look"
) -> list[Message]:
    """A question, a call, its result, an answer."""
    first = turn(text, call("tide_table", '{"place": "Larkholm", "day": 3}', id))
    return [user(question), first, result("06:10 and 18:40", id), turn("At ten past six.")]


def history(line: Line) -> list[Message]:
    found: list[Message] = line["request"]["messages"]
    return found


def read(path: Path, lines: list[Line]) -> tuple[list[Trajectory], TraceReader]:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    reader = read_traces(path, strict=True)
    return list(reader), reader


def joined(tmp_path: Path, lines: list[Line], by: str | None) -> Trajectory:
    """The one trajectory of a log, joined by some evidence."""
    [found], reader = read(tmp_path / "log", lines)
    assert dict(reader.weakly_joined) == ({} if by is None else {by: len(lines) - 1})
    assert (reader.n_unjoined, reader.n_branches) == (0, 0)
    return found


def test_text_dropped_beside_a_call_costs_no_entropy(tmp_path: Path) -> None:
    """H(1/4, four times) = ln 4 = 1.3863 before; H(.7, .1, .1, .1) = -.7 ln .7 - .3 ln .1 = 0.9404 after."""
    question, _, found, _ = tide()
    first = assistant([token("Let me look", (0.25,) * 4)], content="Let me look") | {
        "tool_calls": [call("tide_table", '{"place": "Larkholm"}', QUAY)]
    }
    last = assistant([token("At six.", (0.7, 0.1, 0.1, 0.1))], content="At six.")
    for dropped in (None, "", " "):
        lines = log_of([question, first, found, last], vocab_size=4)
        history(lines[1])[1]["content"] = dropped
        (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        rows = deltah.read_calls(tmp_path / "log.jsonl").sql("SELECT tool, result_chars, value FROM calls").fetchall()
        after = -0.7 * math.log(0.7) - 0.3 * math.log(0.1)
        assert [row[:2] for row in rows] == [("tide_table", len("06:10 and 18:40"))]
        assert rows[0][2] == pytest.approx(after - math.log(4), abs=1e-6)


@pytest.mark.parametrize("field", ["trace_id", "session_id", "conversation_id"])
def test_an_id_of_every_request_keeps_nothing_apart(tmp_path: Path, field: str) -> None:
    lines = log_of([*tide(), user("And on Sunday?"), turn("At seven.")])
    for number, line in enumerate(lines):
        line[field] = f"5e1-{number}"
    found = joined(tmp_path, lines, None)
    assert (found.id, found.n_calls, found.metadata["n_requests"]) == ("r1", 1, 3)


@pytest.mark.parametrize(
    ("changes", "by"),
    [
        ({"content": None}, "tool-call ids"),
        ({"content": "Let me"}, "tool-call ids"),
        ({"content": "(calls a tool)"}, "tool-call ids"),
        ({"content": None, "tool_calls": [call("tide_table", '{"station": 4}', QUAY)]}, "tool-call ids"),
        ({"content": None, "tool_calls": None}, "tool-call ids"),  # the result names it
        ({"tool_calls": [call("tides.tide_table", '{"place": "Larkholm", "day": 3}', QUAY)]}, None),
        ({"tool_calls": [call("look_up", "{}", QUAY)]}, "tool-call ids"),
        ({"content": "  Let  me\nlook "}, None),
        ({"tool_calls": [call("tide_table", '{"day":3,"place":"Larkholm"}', QUAY)]}, None),
    ],
)
def test_what_is_left_of_a_turn_joins_it(tmp_path: Path, changes: Message, by: str | None) -> None:
    lines = log_of(tide())
    history(lines[1])[1].update(changes)
    found = joined(tmp_path, lines, by)
    assert [(c.name, c.arguments, c.result) for c in found.calls] == [
        ("tide_table", '{"place": "Larkholm", "day": 3}', "06:10 and 18:40")
    ]


@pytest.mark.parametrize(
    ("changes", "by"),
    [
        ({"content": "Let me"}, "text"),
        ({"tool_calls": None}, "text"),
        ({"content": None}, "calls"),
        ({"content": None, "tool_calls": [call("tide_table", "{'place': 'Larkholm', 'day': 3}", None)]}, "calls"),
        ({"content": None, "tool_calls": [call("tide_table", '{"station": 4}', None)]}, "order of messages"),
        ({"content": None, "tool_calls": None}, "order of messages"),
    ],
)
def test_without_ids_text_calls_and_order_join(tmp_path: Path, changes: Message, by: str) -> None:
    lines = log_of(tide(id=None))
    history(lines[1])[1].update(changes)
    assert joined(tmp_path, lines, by).calls[0].result == "06:10 and 18:40"


@pytest.mark.parametrize(
    "spelled",
    [
        '<tool_call>\n{"name": "tide_table", "arguments": {"day": "3"}}\n</tool_call>',
        "<tool_call>\n<function=tide_table>\n<parameter=day>\n3\n</parameter>\n</function>\n</tool_call>",
        '[TOOL_CALLS][{"name": "tide_table", "arguments": {"day": "3"}}]',
        '<|python_tag|>{"name": "tide_table", "parameters": {"day": "3"}}',
        'Action: tide_table\nAction Input: {"day": "3"}',  # in no dialect that is known
    ],
)
@pytest.mark.parametrize("left", ["all", "before", "nothing"])
def test_calls_that_the_client_found_in_the_text_are_the_replys(tmp_path: Path, spelled: str, left: str) -> None:
    question, _, found, last = tide(id="call_0")
    lines = log_of([question, turn(f"Let me look.\n{spelled}"), found, last])
    turn_sent = history(lines[1])[1]
    turn_sent["tool_calls"] = [call("tide_table", '{"day": "3"}', "call_0")]
    turn_sent["content"] = {"all": turn_sent["content"], "before": "Let me look.", "nothing": None}[left]
    [trajectory], reader = read(tmp_path / "log", lines)
    assert trajectory.metadata["n_requests"] == 2
    assert reader.n_weakly_joined <= 1


def test_a_call_that_the_server_gives_in_two_fields_is_one(tmp_path: Path) -> None:
    lines = log_of(tide())
    reply = lines[0]["response"]["choices"][0]["message"]
    reply["function_call"] = reply["tool_calls"][0]["function"]
    joined(tmp_path, lines, None)


def test_thinking_in_any_place_is_no_part_of_the_history(tmp_path: Path) -> None:
    question, _, found, last = tide()
    for first in (
        turn("<think>hm, the quay</think>\n\nI look", call(id=QUAY)),
        turn("I look", call(id=QUAY), thinking="hm"),
    ):
        lines = log_of([question, first, found, last])
        history(lines[1])[1]["content"] = "I look"
        history(lines[1])[1].pop("reasoning_content", None)
        joined(tmp_path, lines, None)


def test_replies_that_differ_keep_rollouts_apart_whatever_their_ids(tmp_path: Path) -> None:
    """One question, one session id, ids that only count; both clients drop the text of their first turn."""
    for session in ({}, {"session_id": "all"}):
        a = [user("Where?"), turn("One", call(arguments='{"q": 1}', id="call_0")), result("a", "call_0"), turn("A")]
        b = [user("Where?"), turn("Two", call(arguments='{"q": 2}', id="call_0")), result("b", "call_0"), turn("B")]
        logs = [log_of(messages, **session) for messages in (a, b)]
        for log in logs:
            history(log[1])[1]["content"] = None
        found, reader = read(tmp_path / "log", [logs[0][0], logs[1][0], logs[0][1], logs[1][1]])
        assert {(t.calls[0].arguments, t.calls[0].result, t.prediction) for t in found} == {
            ('{"q": 1}', "a", "A"),
            ('{"q": 2}', "b", "B"),
        }
        assert reader.n_unjoined == 0


def test_what_cannot_be_told_apart_stays_unjoined(tmp_path: Path) -> None:
    """Of two rollouts the texts are dropped, the arguments replaced, and no id is left."""
    logs = []
    for text, number in (("One", 1), ("Two", 2)):
        first = turn(text, call(arguments=json.dumps({"q": number}), id=None))
        logs.append(log_of([user("Where?"), first, result(text, None), turn(f"{number}.")]))
        history(logs[-1][1])[1] |= {"content": None, "tool_calls": [call(arguments='{"query": "?"}', id=None)]}
    found, reader = read(tmp_path / "log", [logs[0][0], logs[1][0], logs[0][1], logs[1][1]])
    assert (len(found), reader.n_unjoined, reader.n_weakly_joined) == (4, 2, 0)


@pytest.mark.parametrize("session", [{}, {"session_id": "s"}, {"trace_id": "s"}])
def test_another_question_contradicts_what_a_turn_says(tmp_path: Path, session: Line) -> None:
    """The same words and the same counted id under another question, whose own first call is not in the log."""
    one, other = log_of(tide(id="c1"), **session), log_of(tide("When is high tide at Orrin?", id="c1"), **session)
    more = log_of([user("Who are you?"), turn("A clerk.")], **session)  # the session has several conversations
    found, reader = read(tmp_path / "log", [one[0], one[1], *more, other[1]])
    assert [t.metadata.get("n_requests", 1) for t in found] == [2, 1, 1]
    assert reader.n_unjoined == 1
    found, reader = read(tmp_path / "log", [one[0], one[1], other[1]])
    assert (len(found), reader.n_unjoined, reader.n_branches) == (2, 1, 0)


def test_another_text_in_the_same_place_contradicts(tmp_path: Path) -> None:
    lines = log_of([user("Where?"), turn("North."), user("Sure?"), turn("Yes.")])
    history(lines[1])[1]["content"] = "South of the mole."
    found, reader = read(tmp_path / "log", lines)
    assert (len(found), reader.n_unjoined, reader.n_weakly_joined) == (2, 1, 0)


def long_talk(*ids: str | None) -> list[Message]:
    messages = [{"role": "system", "content": "Use tools."}, user("When is high tide at Larkholm?")]
    for k, id in enumerate(ids):
        messages += [turn(f"Step {k}", call("tide_table", json.dumps({"day": k}), id)), result(f"{k}:10", id)]
    return [*messages, turn("At ten past.")]


@pytest.mark.parametrize("ids", [(QUAY, MOLE), ("c1", "c2"), (None, None)])
def test_a_summary_in_place_of_old_messages_is_joined(tmp_path: Path, ids: tuple[str | None, str | None]) -> None:
    lines = log_of(long_talk(*ids))
    system, _, _, _, *rest = history(lines[2])
    lines[2]["request"]["messages"] = [system, user("So far: one look at the table."), *rest]
    [found], reader = read(tmp_path / "log", lines)
    assert [(c.arguments, c.result) for c in found.calls] == [('{"day": 0}', "0:10"), ('{"day": 1}', "1:10")]
    assert dict(reader.weakly_joined) == {"tool-call ids" if ids[0] else "text": 1}


@pytest.mark.parametrize("ids", [(QUAY, MOLE), ("call_0", "call_0"), (None, None)])
def test_old_messages_that_the_client_cut_off_are_joined(tmp_path: Path, ids: tuple[str | None, str | None]) -> None:
    lines = log_of(long_talk(*ids))
    system, question, _, _, *rest = history(lines[2])
    for kept in ([system, question, *rest], [system, *rest], rest):
        lines[2]["request"]["messages"] = kept
        [found], reader = read(tmp_path / "log", lines)
        assert [c.result for c in found.calls] == ["0:10", "1:10"]
        assert (reader.n_weakly_joined, reader.n_unjoined) == (1, 0)


def test_the_session_joins_what_a_summary_by_the_assistant_replaced(tmp_path: Path) -> None:
    messages = [
        user("When is high tide?"),
        turn("Which day?"),
        user("Today."),
        turn("At six."),
        user("And low?"),
        turn("Noon."),
    ]
    lines = log_of(messages, session_id="s")
    lines[2]["request"]["messages"] = [
        user("When is high tide?"),
        {"role": "assistant", "content": "(We found six for today.)"},
        user("And low?"),
    ]
    [found], reader = read(tmp_path / "log", lines)
    assert (found.id, found.metadata["n_requests"], dict(reader.weakly_joined)) == ("s", 3, {"session ids": 1})


def test_a_turn_that_the_log_lacks_is_not_taken_for_an_earlier_one(tmp_path: Path) -> None:
    """A poll is sent three times; the second API call is not in the log."""
    poll = [turn("", call("state", "{}", None)), result("running", None)]
    lines = log_of([user("Start it."), *poll, *poll, *poll, turn("Done.")])
    found, reader = read(tmp_path / "log", [lines[0], *lines[2:]])
    assert [[c.name for c in t.calls] for t in found] == [["state"] * 3]
    assert (reader.n_weakly_joined, reader.n_branches) == (0, 0)


def test_examples_that_open_every_request_are_no_replies(tmp_path: Path) -> None:
    examples = [user("When?"), {"role": "assistant", "content": "At noon."}]
    a, b = (
        [*examples, user(question), turn("Let me look", call(id="c1")), result("x", "c1"), turn("So.")]
        for question in "AB"
    )
    lines = [log_of(messages, session_id="all")[1:] for messages in (a, b)]
    found, reader = read(tmp_path / "log", [*lines[0], *lines[1]])
    assert [(t.n_calls, t.metadata["n_requests"]) for t in found] == [(1, 2), (1, 2)]
    assert reader.n_weakly_joined == 0


def test_instructions_never_decide_but_where_nobody_asks(tmp_path: Path) -> None:
    lines = log_of([{"role": "developer", "content": "It is 10:00."}, *tide()])
    history(lines[1])[0] = {"role": "system", "content": "It is 10:01. Be brief."}
    joined(tmp_path, lines, None)
    talks = [
        [{"role": "system", "content": f"Look up {place}."}, *tide(id="c1")[1:]] for place in ("Larkholm", "Orrin")
    ]
    for talk in talks:
        talk[-1]["content"] = talk[0]["content"]
    logs = [log_of(talk) for talk in talks]
    found, _ = read(tmp_path / "log", [logs[0][0], logs[1][0], logs[0][1], logs[1][1]])
    assert [t.segments[0].text == t.prediction for t in found] == [True, True]


def test_context_that_a_client_adds_to_a_question_is_no_contradiction(tmp_path: Path) -> None:
    lines = log_of(tide(id=None))
    history(lines[0])[0]["content"] += "\n\n<context>page of the almanac</context>"
    joined(tmp_path, lines, "text")


def test_old_observations_that_were_cleared_are_no_contradiction(tmp_path: Path) -> None:
    """An agent whose tools speak in user messages, in no spelling of calls that is known."""
    messages = [user("How deep is it?")]
    for k in range(3):
        messages += [turn(f"Next: sound at {k}"), user(f"Observation: {k} m")]
    lines = log_of([*messages, turn("Three metres.")])
    for line in lines[2:]:
        for message in history(line)[2:-2:2]:
            message["content"] = "[cleared]"
    [found], reader = read(tmp_path / "log", lines)
    assert (found.metadata["n_requests"], dict(reader.weakly_joined)) == (4, {"text": 2})


def test_time_grows_with_the_log_not_with_its_square() -> None:
    """Rollouts of one prompt, ids that only count, no text left: as many candidates as conversations."""

    def join(n: int) -> None:
        joiner = Joiner()
        for line in lines[: 2 * n]:
            joiner.add(import_as("openai", line))
        assert joiner.n_unjoined == 0

    lines = []
    for number in range(400):
        first = turn(f"Step {number}", call(arguments=json.dumps({"n": number}), id="call_0"))
        log = log_of([user("Begin!"), first, result("x", "call_0"), turn("Done.")])
        history(log[1])[1]["content"] = None
        lines += [json.dumps(line).encode() for line in log]
    assert growth(join, 100, 400) < 8


def test_the_command_says_what_was_joined_by_what(tmp_path: Path) -> None:
    lines = []
    for number in range(3):
        log = log_of(tide(f"Question {number}?", id=None if number else QUAY))
        history(log[1])[1]["content"] = None
        lines += log
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = CliRunner().invoke(app, ["score", str(path)])
    assert said.exit_code == 0, said.output
    note = "3 API calls joined although the client rewrote the history: 2 by calls, 1 by tool-call ids."
    assert note in " ".join(said.output.split())
    twin = json.loads(CliRunner().invoke(app, ["score", str(path), "--json"]).stdout)
    assert twin["weakly_joined"] == {"calls": 2, "tool-call ids": 1}

"""API calls joined into conversations: prefixes, sessions, retries, interleaving, clients' habits, bounded memory."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltah.core.signals import score
from deltah.core.types import SegmentKind, Trajectory
from deltah.traces import TraceReader, read_traces, write_traces
from deltah.traces.conversation import to_trajectory
from deltah.traces.joining import Joiner

from .chat import assistant, call, decode, import_as, line, result, token, user
from .test_record import assert_same

Message = dict[str, Any]


def turn(text: str, *calls: Message, **fields: Any) -> Message:
    return assistant([token(part) for part in text.split("|")], content=text.replace("|", ""), **fields) | (
        {"tool_calls": list(calls)} if calls else {}
    )


def exchanges(messages: Sequence[Message], **fields: Any) -> list[dict[str, Any]]:
    """What a proxy logs of a conversation: a line for each assistant message, the history repeated without logprobs."""
    lines = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        history = [{k: v for k, v in m.items() if k != "logprobs"} for m in messages[:i]]
        reply = {k: v for k, v in message.items() if k != "logprobs"}
        choice = {"index": 0, "message": reply, "logprobs": message.get("logprobs"), "finish_reason": "stop"}
        lines.append({"request": {"messages": history}, "response": {"id": f"r{i}", "choices": [choice]}} | fields)
    return copy.deepcopy(lines)


def read(path: Path, lines: Sequence[dict[str, Any]], **options: Any) -> tuple[list[Trajectory], TraceReader]:
    path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    reader = read_traces(path, strict=True, **options)
    return list(reader), reader


def conversation(question: str = "Where?", n_rounds: int = 2) -> list[Message]:
    messages = [{"role": "system", "content": "Use tools."}, user(question)]
    for k in range(n_rounds):
        messages.append(turn(f"think {k}| about {question}|.", call(arguments=json.dumps({"q": k}), id=f"c{k}")))
        messages.append(result(f"found {k}", f"c{k}"))
    return [*messages, turn("The answer| is there")]


def text_of(t: Trajectory) -> str:
    return "".join(t.token_texts or ())


def test_calls_of_one_conversation_become_the_conversation(tmp_path: Path) -> None:
    messages = conversation()
    [joined], reader = read(tmp_path / "log", exchanges(messages, vocab_size=3))
    whole = decode(line(messages, id="r2", vocab_size=3), default_id="d")
    assert joined.metadata["n_requests"] == 3
    assert reader.n_unjoined == reader.n_branches == 0
    assert [(s.kind, s.start, s.stop, s.turn, s.text) for s in joined.segments] == [
        (s.kind, s.start, s.stop, s.turn, s.text) for s in whole.segments
    ]
    assert [(c.name, c.result) for c in joined.calls] == [("search", "found 0"), ("search", "found 1")]
    assert score(joined).value.tolist() == score(whole).value.tolist()
    assert (joined.id, joined.prediction, joined.question) == ("r2", "The answer is there", "Where?")


def test_without_joining_each_call_stands_alone(tmp_path: Path) -> None:
    found, _ = read(tmp_path / "log", exchanges(conversation()), join=False)
    assert [len(t) for t in found] == [3, 3, 2]


def test_clients_that_touch_up_the_history_are_followed(tmp_path: Path) -> None:
    """Stripped text, dropped thinking, reprinted arguments, cut results, a clock in the system prompt."""
    lines = exchanges(
        [
            {"role": "system", "content": "It is 10:00."},
            user(),
            turn("<think>|hm|</think>| look ", call(arguments='{"b":1,"a":[2, 3]}')),
            result("a very long page"),
            turn("see|.", call(arguments="{}", id="c2")),
            result("short", "c2"),
            turn("done"),
        ]
    )
    for number, one in enumerate(lines[1:], start=1):
        history = one["request"]["messages"]
        history[0]["content"] = f"It is 10:0{number}."
        history[2]["content"] = "look"
        history[2]["tool_calls"][0]["function"]["arguments"] = '{"a": [2,3], "b": 1}'
    lines[2]["request"]["messages"][3]["content"] = "[old result cleared]"
    [joined], _ = read(tmp_path / "log", lines)
    assert [c.result for c in joined.calls] == ["a very long page", "short"]
    assert joined.metadata["n_requests"] == 3


def test_the_time_between_two_calls_is_the_tools(tmp_path: Path) -> None:
    lines = exchanges(conversation())
    for one, start in zip(lines, (100.0, 103.5, 110.0), strict=True):
        one |= {"started_at": start, "duration_s": 2.0}
    [joined], _ = read(tmp_path / "log", lines)
    assert [c.duration_s for c in joined.calls] == [1.5, 4.5]
    assert joined.metadata["duration_s_from"] == "gap between API calls"
    for per_second in (10**3, 10**6, 10**9):
        scaled = [one | {"started_at": int((one["started_at"] + 1.7e9) * per_second)} for one in lines]
        [joined], _ = read(tmp_path / "scaled.jsonl", scaled)
        assert [c.duration_s for c in joined.calls] == pytest.approx([1.5, 4.5], abs=1e-5), per_second
    lines[1]["request"]["messages"][-1]["duration_s"] = 0.25
    lines[2]["started_at"] = "in the morning"
    [joined], _ = read(tmp_path / "log", lines)
    assert [c.duration_s for c in joined.calls] == [0.25, None]
    assert "duration_s_from" not in joined.metadata, "what is stated is no gap"


def test_interleaved_conversations_come_apart(tmp_path: Path) -> None:
    a, b = exchanges(conversation("A?")), exchanges(conversation("B?", 1))
    found, _ = read(tmp_path / "log", [a[0], b[0], a[1], b[1], a[2]])
    assert [(t.question, t.n_calls) for t in found] == [("A?", 2), ("B?", 1)]


def test_samples_of_one_prompt_stay_apart(tmp_path: Path) -> None:
    """Two rollouts of a question that open with the same words are two trajectories."""
    lines = exchanges(conversation(n_rounds=1))
    others = copy.deepcopy(lines)
    for other in others:
        other["response"]["id"] += "-other"
    found, reader = read(tmp_path / "log", [lines[0], others[0], lines[1], others[1]])
    assert [t.n_calls for t in found] == [1, 1]
    assert [len(t) for t in found] == [5, 5]
    assert reader.n_branches == 0


def test_a_retry_is_a_branch_and_nothing_is_counted_twice(tmp_path: Path) -> None:
    lines = exchanges(conversation())
    retry = copy.deepcopy(lines[1])
    failed = turn("never| mind", call("broken", id="x"))
    retry["response"]["choices"][0] |= {"message": {k: v for k, v in failed.items() if k != "logprobs"}}
    retry["response"]["choices"][0]["logprobs"] = failed["logprobs"]
    found, reader = read(tmp_path / "log", [lines[0], retry, lines[1], lines[2]])
    main, branch = found
    assert reader.n_branches == 1
    assert [c.name for c in main.calls] == ["search", "search"]
    assert [c.name for c in branch.calls] == ["broken"]
    assert (branch.id, text_of(branch)) == ("r2/branch-1", "never mind")
    assert {s.kind for s in branch.segments[:4]} == {SegmentKind.PROMPT}
    assert sum(t.n_calls for t in found) == 3
    assert sum(len(t) for t in found) == 3 + 3 + 2 + 2


def first_request_again(lines: Sequence[dict[str, Any]], reply: Message, **fields: Any) -> dict[str, Any]:
    """The first API call of a conversation, sent once more and answered otherwise."""
    other = exchanges([*lines[0]["request"]["messages"], reply], **fields)[-1]
    other["response"]["id"] = "again"
    return other


@pytest.mark.parametrize("order", ["before", "after", "late", "last"])
def test_a_retry_of_the_first_call_of_a_session_is_a_branch(tmp_path: Path, order: str) -> None:
    lines = exchanges(conversation(), session_id="s", golden_answers=["The answer is there"])
    lines[-1]["outcome"] = 1.0
    retry = first_request_again(lines, turn("never| mind", call("broken", id="x")), session_id="s")
    at = {"before": 0, "after": 1, "late": 2, "last": 3}[order]
    found, reader = read(tmp_path / "log", [*lines[:at], retry, *lines[at:]])
    main, branch = found
    assert (reader.n_branches, reader.n_unjoined) == (1, 0)
    assert (main.id, main.metadata["n_requests"], main.outcome) == ("s", 3, 1.0)
    assert [c.name for c in main.calls] == ["search", "search"]
    assert (branch.id, text_of(branch), branch.outcome, branch.prediction) == ("s/branch-1", "never mind", None, None)
    assert [c.name for c in branch.calls] == ["broken"]
    assert sum(len(t) for t in found) == 3 + 3 + 2 + 2
    # But for the retry the conversation is what it is without one.
    [alone], _ = read(tmp_path / "alone", lines)
    assert_same(main, alone)


def test_an_attempt_that_went_on_for_a_while_is_one_branch(tmp_path: Path) -> None:
    lines = exchanges(conversation(), session_id="s")
    other = first_request_again(lines, turn("no|", call(id="x")), session_id="s")
    history = [*other["request"]["messages"], other["response"]["choices"][0]["message"], result("nothing", "x")]
    given_up = exchanges([*history, turn("I give| up")], session_id="s")[-1]
    for log in ([other, given_up, *lines], [lines[0], other, lines[1], given_up, lines[2]]):
        found, reader = read(tmp_path / "log", log)
        assert [(t.id, t.n_calls, t.prediction) for t in found] == [
            ("s", 2, "The answer is there"),
            ("s/branch-1", 1, "I give up"),
        ]
        assert found[1].calls[0].result == "nothing"
        assert reader.n_branches == 1


def test_of_attempts_that_nothing_continues_the_last_is_the_conversation(tmp_path: Path) -> None:
    lines = exchanges(conversation(n_rounds=0), session_id="s")
    retries = [first_request_again(lines, turn(text), session_id="s") for text in ("one", "two")]
    found, reader = read(tmp_path / "log", [*lines, *retries])
    assert [(t.id, t.prediction) for t in found] == [
        ("s", "two"),
        ("s/branch-1", "The answer is there"),
        ("s/branch-2", "one"),
    ]
    assert reader.n_branches == 2


def test_a_first_request_that_opens_with_a_greeting_continues_nothing_when_sent_again(tmp_path: Path) -> None:
    """The greeting is an assistant's turn that no log holds."""
    lines = exchanges([turn("Hello"), user(), turn("It is| here")], session_id="s")[1:]
    found, reader = read(tmp_path / "log", [first_request_again(lines, turn("Well"), session_id="s"), *lines])
    assert [(t.id, text_of(t)) for t in found] == [("s", "It is here"), ("s/branch-1", "Well")]
    assert (reader.n_branches, reader.n_unjoined) == (1, 2)


def test_only_the_same_first_request_of_the_same_session_is_a_retry(tmp_path: Path) -> None:
    lines = exchanges(conversation(), session_id="s")
    for field, value, ids in (
        (1, "Another question?", ["s", "s#2"]),
        (0, "Only say which tool fits.", ["s", "s#2"]),  # a second agent under the trace of the first
    ):
        other = first_request_again(lines, turn("so"), session_id="s")
        other["request"]["messages"][field]["content"] = value
        found, reader = read(tmp_path / "log", [lines[0], other, *lines[1:]])
        assert [t.id for t in found] == ids
        assert reader.n_branches == 0
    for session in ({}, {"session_id": "other"}):
        other = first_request_again(lines, turn("so"), **session)
        found, reader = read(tmp_path / "log", [other, *lines])
        assert [t.id for t in found] == [session.get("session_id", "again"), "s"]
        assert reader.n_branches == 0
    responses = [{k: v for k, v in one.items() if k != "request"} for one in lines]
    found, reader = read(tmp_path / "log", responses)
    assert [t.id for t in found] == ["s", "s#2", "s#3"], "what was not logged is not the same"
    assert reader.n_branches == 0
    sampled = exchanges(conversation())
    other = first_request_again(sampled, turn("so"))
    found, reader = read(tmp_path / "log", [other, *sampled])
    assert [t.id for t in found] == ["again", "r2"]
    assert reader.n_branches == 0


def test_a_session_id_joins_a_rewritten_history(tmp_path: Path) -> None:
    lines = exchanges(conversation(), metadata={"session_id": "s1"})
    lines[1]["request"]["messages"][1]["content"] = "(the question, shortened)"
    found, reader = read(tmp_path / "log", lines)
    assert [(t.id, t.n_calls, t.metadata["n_requests"]) for t in found] == [("s1", 2, 3)]
    for one in lines:
        one["metadata"] = {}
    found, reader = read(tmp_path / "log", lines)
    # The second call repeats a beginning that the log does not hold in its words; the third skips the second.
    assert reader.n_unjoined == 1
    assert [(t.metadata.get("unjoined"), t.n_calls) for t in found] == [(None, 2), (True, 2)]


def test_sessions_keep_like_conversations_apart_and_number_them(tmp_path: Path) -> None:
    a, b = exchanges(conversation(), session_id="a"), exchanges(conversation(), session_id="b")
    second = exchanges(conversation("More?", 0), session_id="a")
    found, _ = read(tmp_path / "log", [a[0], b[0], b[1], a[1], a[2], b[2], *second])
    assert [(t.id, t.n_calls) for t in found] == [("a", 2), ("b", 2), ("a#2", 0)]


def test_mixed_temperatures_are_not_one_measurement(tmp_path: Path) -> None:
    lines = exchanges(conversation(n_rounds=1))
    lines[0]["request"]["temperature"], lines[1]["request"]["temperature"] = 1.0, 0.7
    [joined], _ = read(tmp_path / "log", lines)
    assert joined.temperature is None
    assert joined.metadata["mixed_sampling"] is True


def test_conversations_go_on_in_the_next_file(tmp_path: Path) -> None:
    lines = exchanges(conversation())
    for name, part in (("log.1.jsonl", lines[:1]), ("log.2.jsonl", lines[1:])):
        (tmp_path / name).write_text("".join(json.dumps(one) + "\n" for one in part))
    (tmp_path / "tasks.jsonl").write_text('{"question": "Where?"}\n')
    reader = read_traces(tmp_path, strict=True)
    assert [t.metadata["n_requests"] for t in reader] == [3]
    assert reader.skipped == [str(tmp_path / "tasks.jsonl")]


def test_memory_of_open_conversations_is_bounded() -> None:
    joiner, closed = Joiner(max_bytes=200_000), 0
    for i in range(400):
        first = json.dumps(exchanges(conversation(f"Q{i}?"))[0]).encode()
        closed += len(joiner.add(import_as("openai", first, number=i)))
        assert joiner._n_bytes <= 210_000
    rest = list(joiner.finish())
    assert 0 < len(rest) < 400
    assert closed + len(rest) == 400
    assert joiner._n_bytes == 0
    assert not joiner._index
    assert not joiner._trees


def test_memory_of_one_request_sent_without_end_is_bounded() -> None:
    joiner, found = Joiner(max_bytes=200_000), []
    ping = exchanges(conversation(), session_id="s")[0]
    for i in range(600):
        ping["response"]["id"] = f"ping-{i}"
        found += joiner.add(import_as("openai", json.dumps(ping).encode(), number=i))
        assert joiner._n_bytes <= 210_000
    assert found, "more than fits into the memory"
    found += joiner.finish()
    assert len({one.facts.id for one in found}) == 600
    assert joiner._n_bytes == 0
    assert not joiner._begun


def test_a_conversation_that_cannot_be_a_trajectory_is_one_problem(tmp_path: Path) -> None:
    good, bad = exchanges(conversation("A?")), exchanges(conversation("B?"), vocab_size=1)
    path = tmp_path / "log"
    path.write_text("".join(json.dumps(one) + "\n" for one in [*bad, *good]))
    reader = read_traces(path)
    assert [t.question for t in reader] == ["A?"]
    assert [(p.line, "vocabulary of 1 token" in p.reason) for p in reader.problems] == [(1, True)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ABC"), st.integers(0, 3)), min_size=1, max_size=4, unique=True), st.randoms()
)
def test_any_interleaving_gives_every_conversation_back(chosen: list[tuple[str, int]], rng: Any) -> None:
    talks = [conversation(f"{name}{n}?", n) for name, n in chosen]
    queues = [exchanges(talk) for talk in talks]
    joiner = Joiner()
    while any(queues):
        queue = rng.choice([q for q in queues if q])
        assert not joiner.add(import_as("openai", json.dumps(queue.pop(0)).encode()))
    found = {t.question: t for t in (to_trajectory(one) for one in joiner.finish())}
    assert set(found) == {f"{name}{n}?" for name, n in chosen}
    for talk in talks:
        whole = decode(line(talk), default_id="d")
        got = found[whole.question]
        assert got.segments == whole.segments
        assert text_of(got) == text_of(whole)


def test_joined_traces_survive_our_own_record(tmp_path: Path) -> None:
    [joined], _ = read(tmp_path / "log", exchanges(conversation()))
    write_traces(tmp_path / "t.jsonl", [joined])
    [again] = read_traces(tmp_path / "t.jsonl", strict=True)
    assert_same(again, joined)


def test_tokens_without_logprobs_of_a_conversation_are_those_of_its_replies(tmp_path: Path) -> None:
    lines = exchanges(conversation())
    for one, drawn in zip(lines, (3, 9, 12), strict=True):
        one["response"]["usage"] = {"completion_tokens": drawn}
    [t], _ = read(tmp_path / "log.jsonl", lines)
    assert t.metadata["tokens_without_logprobs"] == (9 - 3) + (12 - 2)

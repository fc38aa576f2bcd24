"""Contexts of a call, spliced by hand: every other token stays, siblings stay, an open turn stays open."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from probe_fixtures import Words, in_tokens, searched

from deltah import Segment, SegmentKind, ToolCall, Trajectory
from deltah.probe.contexts import Contexts, LoggedCall, Splicer, body_spans, contexts_of
from deltah.probe.plan import ControlPool
from deltah.probe.queries import ChatContext, TextContinuation, TokenContext, TokenContinuation, focus_mask
from deltah.traces.files import Position
from deltah.traces.importing import IMPORTERS, RecordContext, import_record


def call_of(trajectory: Trajectory, call: int = 0) -> LoggedCall:
    return LoggedCall(trajectory=trajectory, index=call)


def spelled(words: Words, context: object) -> str:
    assert isinstance(context, TokenContext)
    return "|".join(words.texts(context.ids))


def build(trajectory: Trajectory, call: int, other: Trajectory, words: Words | None) -> Contexts:
    return contexts_of(call_of(trajectory, call), call_of(other), Splicer(words))


def test_a_single_call_in_tokens_by_hand() -> None:
    words = Words()
    trajectory = searched(words, "q", ["red fox", "blue owl here"], "owl")
    other = searched(words, "other", ["grey wolf pack"], "wolf")
    found = build(trajectory, 1, other, words)
    state = "<user>q?|think0|<search q0>|<end>|<tool>| red| fox|<end>|<assistant>|think1|"
    assert found.form == "tokens"
    assert spelled(words, found.real) == state + "<search q1>|<end>|<tool>| blue| owl| here|<end>|<assistant>"
    assert spelled(words, found.control) == state + "<search q1>|<end>|<tool>| grey| wolf| pack|<end>|<assistant>"
    assert spelled(words, found.none) == state[:-1], "the call was not made: its turn stays open"
    assert isinstance(found.segment, TokenContinuation)
    assert words.texts(found.segment.ids) == ["So.", "<answer> owl</answer>"]
    assert found.segment.focus == (True, True)


def test_the_next_segment_leaves_calls_and_ends_out() -> None:
    words = Words()
    trajectory = searched(words, "q", ["red fox", "blue owl"], "owl")
    segment = build(trajectory, 0, searched(words, "o", ["grey wolf"], "x"), words).segment
    assert isinstance(segment, TokenContinuation)
    assert words.texts(segment.ids) == ["think1"]


def parallel(words: Words, n: int = 3) -> Trajectory:
    """One turn with n calls that are kept apart by a newline, all answered in one segment."""
    first = [("reasoning", "both"), ("control", "\n\n")]
    for i in range(n):
        first += [("call", f"<c{i}>"), *([("control", "\n")] if i + 1 < n else [])]
    first.append(("control", "<end>"))
    for i in range(n):
        first += [("result", "<tool>"), ("result", f" r{i}"), ("result", "\n x"), ("result", "<end>")]
    first.append(("result", "<assistant>"))
    calls = [ToolCall(id=f"0.{i}", name="search", arguments=str(i), turn=0, result=f"r{i}\nx") for i in range(n)]
    return in_tokens(words, [first, [("reasoning", "done"), ("control", "<end>")]], calls, id="p", question="p?")


@pytest.mark.parametrize(
    ("call", "calls", "results"),
    [
        (0, "<c1>|\n|<c2>", "<tool>| r1|\n x|<end>|<tool>| r2|\n x|<end>"),
        (1, "<c0>|\n|<c2>", "<tool>| r0|\n x|<end>|<tool>| r2|\n x|<end>"),
        (2, "<c0>|\n|<c1>", "<tool>| r0|\n x|<end>|<tool>| r1|\n x|<end>"),
    ],
)
def test_a_parallel_call_is_removed_and_its_siblings_stay(call: int, calls: str, results: str) -> None:
    words = Words()
    found = build(parallel(words), call, searched(words, "o", ["grey wolf"], "x"), words)
    assert spelled(words, found.none) == f"<user>p?|both|\n\n|{calls}|<end>|{results}|<assistant>"
    bodies = ["<tool>| r0|\n x", "<tool>| r1|\n x", "<tool>| r2|\n x"]
    bodies[call] = "<tool>| grey| wolf"
    expected = "<user>p?|both|\n\n|<c0>|\n|<c1>|\n|<c2>|<end>|" + "|<end>|".join(bodies) + "|<end>|<assistant>"
    assert spelled(words, found.control) == expected


def test_without_a_span_of_its_own_a_call_cannot_be_removed() -> None:
    words = Words()
    trajectory = parallel(words, 2)
    merged = tuple(
        Segment(kind=SegmentKind.CALL, start=2, stop=5, turn=0) if s.start == 2 else s
        for s in trajectory.segments
        if s.start not in (3, 4)
    )
    joined = Trajectory(
        id="p", question="p?", segments=merged, calls=trajectory.calls,
        token_ids=trajectory.token_ids, token_texts=trajectory.token_texts,
    )  # fmt: skip
    found = build(joined, 0, searched(words, "o", ["grey wolf"], "x"), words)
    assert found.none is None
    assert found.form == "tokens"


def test_think_tags_and_text_after_the_call_stay_in_an_open_turn() -> None:
    words = Words()
    first = [
        ("control", "<think>"),
        ("reasoning", "hm"),
        ("control", "</think>"),
        ("call", "<c>"),
        ("reasoning", "wait"),
    ]
    first += [("control", "<end>"), ("result", "<tool>"), ("result", " r"), ("result", "<assistant>")]
    calls = [ToolCall(id="a", name="search", arguments="", turn=0, result="r")]
    trajectory = in_tokens(words, [first], calls, id="t", question="t?")
    found = build(trajectory, 0, searched(words, "o", ["grey"], "x"), words)
    assert spelled(words, found.none) == "<user>t?|<think>|hm|</think>|wait"
    assert found.segment is None, "no turn follows"


def test_bodies_are_found_by_their_visible_characters() -> None:
    words = Words()
    trajectory = parallel(words)
    assert body_spans(trajectory, 0) == {0: (9, 11), 1: (13, 15), 2: (17, 19)}


@pytest.mark.parametrize("result", ["tool", "<end>", "nowhere"])
def test_a_result_that_the_template_could_have_written_is_not_spliced(result: str) -> None:
    words = Words()
    pieces = [("call", "<c>"), ("result", "tool"), ("result", "<end>"), ("result", " tool"), ("result", "<end>")]
    calls = [ToolCall(id="a", name="search", arguments="", turn=0, result=result)]
    assert body_spans(in_tokens(words, [pieces], calls, id="t"), 0) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["ab", "c", "def", "g h"]), min_size=1, max_size=4), min_size=1, max_size=4))
def test_replacing_a_result_by_itself_changes_nothing(results: Sequence[Sequence[str]]) -> None:
    words = Words()
    trajectory = searched(words, "q", [f"{i} " + " ".join(r) for i, r in enumerate(results)], "x")
    for call in range(len(results)):
        found = build(trajectory, call, trajectory, words)
        if call == 0:
            assert found.control == found.real
        assert isinstance(found.real, TokenContext)
        assert isinstance(found.none, TokenContext)
        assert found.real.ids[: len(found.none.ids)] == found.none.ids


def test_ids_of_another_tokenizer_are_not_spliced() -> None:
    words = Words()
    trajectory = searched(words, "q", ["red fox"], "fox")

    class Other(Words):
        def texts(self, ids: Sequence[int]) -> list[str]:
            return ["?" for _ in ids]

    found = build(trajectory, 0, searched(words, "o", ["grey wolf"], "x"), Other())
    assert found.form == "messages"


def log(messages: list[dict[str, object]]) -> Trajectory:
    import json

    record = json.dumps({"id": "t", "messages": messages}).encode()
    return import_record(IMPORTERS["openai"], record, RecordContext(where=Position("log", 1)))


CALLS = [
    {"id": i, "type": "function", "function": {"name": "search", "arguments": f'{{"q": "{i}"}}'}} for i in ("a", "b")
]


def result_of(id: str, text: str) -> dict[str, object]:
    return {"role": "tool", "tool_call_id": id, "name": "search", "content": text}


def test_messages_of_a_single_call() -> None:
    said = {"role": "assistant", "content": "Let me look.", "tool_calls": CALLS[:1]}
    asked = {"role": "user", "content": "?"}
    trajectory = log([asked, said, result_of("a", "real"), {"role": "assistant", "content": "So it is."}])
    found = contexts_of(call_of(trajectory), call_of(log([asked, said, result_of("a", "fake")])), Splicer(None))
    assert found.form == "messages"
    assert found.real == ChatContext(messages=(asked, said, result_of("a", "real")))
    assert found.control == ChatContext(messages=(asked, said, result_of("a", "fake")))
    assert found.none == ChatContext(messages=(asked,), open_text="Let me look.")
    assert found.segment == TextContinuation(text="So it is.")


def test_messages_of_a_parallel_call() -> None:
    said = {"role": "assistant", "content": "Both.", "tool_calls": CALLS}
    asked = {"role": "user", "content": "?"}
    trajectory = log([asked, said, result_of("a", "ra"), result_of("b", "rb")])
    found = contexts_of(call_of(trajectory, 1), call_of(log([asked, said, result_of("a", "fake")])), Splicer(None))
    assert found.none == ChatContext(messages=(asked, {**said, "tool_calls": CALLS[:1]}, result_of("a", "ra")))
    assert found.control == ChatContext(messages=(asked, said, result_of("a", "ra"), result_of("b", "fake")))
    assert found.segment is None


def test_focus_is_counted_from_both_ends() -> None:
    assert focus_mask(["<answer>", " N", "orth", "</answer>"], 9, 9).tolist() == [False, True, True, False]
    assert focus_mask(["<ans", "wer> N", "</", "answer>"], 9, 9).tolist() == [False, True, False, False]
    assert focus_mask(["a", "b"], 0, 0).all()
    assert not focus_mask([], 3, 0).size


# The control result.


def test_the_control_result_is_of_another_question_and_free_of_the_answer() -> None:
    words = Words()
    target = searched(words, "q", ["the red fox"], "fox")
    same = searched(words, "q2", ["the red cat"], "fox", question="q?")
    leaking = searched(words, "leak", ["a Fox! ran"], "x")
    good = searched(words, "good", ["the grey owl"], "x")
    long = searched(words, "long", ["owl " * 40], "x")
    pool = ControlPool([target, same, leaking, good, long])
    for seed in range(20):
        other = pool.choose(call_of(target), seed)
        assert other is not None
        assert other.trajectory is good


def test_the_same_question_under_another_task_id_gives_no_control_result() -> None:
    words = Words()
    target = searched(words, "a", ["the red fox"], "fox", question="Who ran?", metadata={"task_id": "1"})
    again = searched(words, "b", ["the red cat"], "fox", question="who ran? ", metadata={"task_id": "2"})
    other = searched(words, "c", ["the grey owl"], "fox", question="Who flew?", metadata={"task_id": "3"})
    assert ControlPool([target, again]).choose(call_of(target), 0) is None
    pool = ControlPool([target, again, other])
    chosen = {d.trajectory.id for s in range(20) if (d := pool.choose(call_of(target), s))}
    assert chosen == {"c"}


def test_no_control_result_without_another_question() -> None:
    words = Words()
    target = searched(words, "q", ["red", "fox"], "a")
    assert ControlPool([target]).choose(call_of(target), 0) is None


def test_the_control_result_depends_on_seed_and_call_alone() -> None:
    words = Words()
    target = searched(words, "q", ["aaa bbb", "ccc ddd"], "zzz")
    others = [searched(words, f"o{i}", [f"w{i:02d} v{i:02d}"], "zzz") for i in range(12)]
    chosen = [
        ControlPool([target, *others]).choose(call_of(target, 1), 5),
        ControlPool([*others[::-1], target]).choose(call_of(target, 1), 5),
    ]
    assert chosen[0] is not None
    assert chosen[1] is not None
    assert chosen[0].trajectory is chosen[1].trajectory
    by_seed = {d.trajectory.id for s in range(40) if (d := ControlPool([target, *others]).choose(call_of(target), s))}
    assert len(by_seed) > 6
    assert not np.isin("q", list(by_seed))

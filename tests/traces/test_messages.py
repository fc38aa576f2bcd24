"""Segments and calls back to chat messages: the inverse of the importer, and what a trajectory does not keep."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from deltah import Segment, SegmentKind, ToolCall, Trajectory
from deltah.traces.messages import placed_messages, with_object_arguments

from .chat import assistant, call, decode, line, result, token, user

SURE = (1.0, 0.0, 0.0)


def messages_of(trajectory: Trajectory) -> list[dict[str, Any]]:
    return [placed.message for placed in placed_messages(trajectory)]


def back(messages: list[dict[str, Any]], **fields: Any) -> list[dict[str, Any]]:
    return messages_of(decode(line(messages, **fields), default_id="t"))


def tool(text: str, id: str, name: str = "search") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "name": name, "content": text}


def test_a_conversation_of_texts_comes_back_as_it_was() -> None:
    messages = [
        {"role": "system", "content": "Use tools."},
        user("Where?"),
        {"role": "assistant", "content": "Two looks.", "tool_calls": [call(id="a"), call("python", "{}", id="b")]},
        tool("north", "a"),
        tool("error: no", "b", "python"),
        {"role": "assistant", "content": "", "reasoning_content": "so?", "tool_calls": [call(id="c")]},
        tool("south", "c"),
        {"role": "assistant", "content": "South.", "reasoning_content": "hm"},
        user("Sure?"),
        {"role": "assistant", "content": "Yes."},
    ]
    expected = [dict(m) for m in messages]
    expected[5] = {k: v for k, v in expected[5].items() if k != "reasoning_content"} | {"content": "so?"}
    assert back(messages) == expected


TEXT = st.text(alphabet="abc <>{}\"'\n", min_size=1, max_size=12).filter(lambda t: "<tool_call>" not in t)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Any number of turns, each with up to three calls, answered in order or not at all."""
    messages = [{"role": "system", "content": "S"}] if draw(st.booleans()) else []
    messages.append(user("the question"))
    for turn in range(draw(st.integers(1, 4))):
        calls = [call(f"tool{i}", draw(TEXT), id=f"{turn}.{i}") for i in range(draw(st.integers(0, 3)))]
        content = draw(TEXT)
        thought = {"reasoning_content": draw(TEXT)} if draw(st.booleans()) else {}
        messages.append({"role": "assistant", "content": content} | thought | ({"tool_calls": calls} if calls else {}))
        n_answered = draw(st.integers(0, len(calls)))
        messages += [tool(f"{turn}.{i} {draw(TEXT)}", f"{turn}.{i}", f"tool{i}") for i in range(n_answered)]
        if draw(st.booleans()):
            messages.append(user(draw(TEXT)))
    return messages


@settings(max_examples=80, deadline=None)
@given(conversations())
def test_messages_survive_the_round_trip(messages: list[dict[str, Any]]) -> None:
    assert back(messages) == messages


@settings(max_examples=50, deadline=None)
@given(conversations())
def test_the_trajectory_survives_it_too(messages: list[dict[str, Any]]) -> None:
    first = decode(line(messages), default_id="t")
    again = decode(line(messages_of(first)), default_id="t")
    assert again.segments == first.segments
    assert again.calls == first.calls


def test_turns_are_those_of_the_segments() -> None:
    trajectory = decode(
        line([user(), assistant(None, content="x", tool_calls=[call()]), result("r"), assistant(None, content="y")]),
        default_id="t",
    )
    assert [(p.message["role"], p.turn, p.call) for p in placed_messages(trajectory)] == [
        ("user", 0, None),
        ("assistant", 0, None),
        ("tool", 0, 0),
        ("assistant", 1, None),
    ]


def test_sampled_tokens_become_text_without_calls_and_delimiters() -> None:
    tokens = [
        token("<think>", SURE),
        token("hm"),
        token("</think>", SURE),
        token("\n\n", SURE),
        token("Let me"),
        token(" look."),
    ]
    tokens += [token("\n", SURE), token("<tool_call>", SURE), token('{"name": "search", "arguments": {"query": "x"}}')]
    tokens += [token("</tool_call>", SURE), token("<|im_end|>", SURE)]
    [_, message] = back([user(), assistant(tokens, tool_calls=[call()], reasoning_content="hm")])
    assert message == {
        "role": "assistant",
        "content": "Let me look.",
        "reasoning_content": "hm",
        "tool_calls": [call()],
    }


def test_a_thought_whose_opening_tag_the_template_wrote() -> None:
    tokens = [token("hm"), token("</think>", SURE), token("North.")]
    assert back([user(), assistant(tokens)])[1] == {
        "role": "assistant",
        "content": "North.",
        "reasoning_content": "hm",
    }


def test_hermes_markup_in_a_text_stands_in_the_calls_only() -> None:
    text = 'Look. <tool_call>{"name": "search", "arguments": {"query": "x"}}</tool_call>'
    [_, message, answer] = back([user(), assistant(None, content=text), result("found", id=None)])
    assert message["content"] == "Look."
    assert message["tool_calls"][0]["function"] == {"name": "search", "arguments": '{"query": "x"}'}
    assert (answer["content"], answer["tool_call_id"]) == ("found", message["tool_calls"][0]["id"])


def test_an_attempt_that_did_not_parse_stays_text() -> None:
    text = "Look. <tool_call>{broken</tool_call>"
    assert back([user(), assistant(None, content=text)])[1]["content"].startswith(text)


def rollout() -> Trajectory:
    """As our own engine writes it: prompt as one text, everything else in tokens, one result segment for two calls."""
    texts = ["A", "B", " <c1>", " <c2>", "<|end|>", "T", "r1", "T", "r2", "N", "Z", "<|end|>"]
    kinds = [("reasoning", 0, 2, 0), ("call", 2, 3, 0), ("call", 3, 4, 0), ("control", 4, 5, 0), ("result", 5, 10, 0)]
    kinds += [("reasoning", 10, 11, 1), ("control", 11, 12, 1)]
    return Trajectory(
        id="t",
        question="Where?",
        segments=(
            Segment(kind=SegmentKind.PROMPT, start=0, stop=0, turn=0, text="Think.\nBriefly.\nWhere?"),
            *(Segment(kind=SegmentKind(k), start=a, stop=b, turn=t) for k, a, b, t in kinds),
        ),
        calls=(
            ToolCall(id="0.0", name="search", arguments='{"q": 1}', turn=0, result="r1"),
            ToolCall(id="0.1", name="python", arguments="{}", turn=0, result="r2"),
        ),
        token_ids=np.arange(12),
        token_texts=tuple(texts),
    )


def test_a_rollout_in_tokens() -> None:
    calls = [call("search", '{"q": 1}', "0.0"), call("python", "{}", "0.1")]
    assert messages_of(rollout()) == [
        {"role": "system", "content": "Think.\nBriefly."},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "AB", "tool_calls": calls},
        tool("r1", "0.0"),
        tool("r2", "0.1", "python"),
        {"role": "assistant", "content": "Z"},
    ]


def test_a_result_without_a_call_keeps_its_place() -> None:
    assert back([user(), result("stray", id="?"), assistant(None, content="x")])[1] == {
        "role": "tool",
        "content": "stray",
    }


def test_templates_get_objects_where_the_text_is_one() -> None:
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [call(arguments='{"a": 1}'), call(arguments="not JSON")]}
    ]
    first, second = with_object_arguments(messages)[0]["tool_calls"]
    assert first["function"]["arguments"] == {"a": 1}
    assert second["function"]["arguments"] == "not JSON"
    assert json.loads(messages[0]["tool_calls"][0]["function"]["arguments"]) == {"a": 1}, "the original is untouched"

r"""From segments and calls back to chat messages: the inverse of `deltah.traces.conversation`.

The role of a prompt is not kept: the text that equals `Trajectory.question` is the user's, what stands before it the
system's; without a question, the first of several prompts is the system's. Other media and empty messages are lost.
Messages are in the wire form of the OpenAI protocol: `arguments` is text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

from deltah.core.types import Segment, SegmentKind, Trajectory
from deltah.traces.dialects import END_TOKENS, call_extents, written_calls

Message: TypeAlias = dict[str, Any]

_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedMessage:
    """One message and where it stands."""

    message: Message
    turn: int
    """As `Segment.turn`."""
    call: int | None = None
    """Of a result: index into `Trajectory.calls` of the call it answers; None where no call is known."""


def placed_messages(trajectory: Trajectory) -> tuple[PlacedMessage, ...]:
    """Messages of a trajectory with their turns, in order; turns never fall."""
    placed: list[PlacedMessage] = []
    answered: set[int] = set()
    prompts = iter(_prompts(trajectory))
    # Prompts and results one by one; the sampled segments of one assistant message together.
    messages = groupby(enumerate(trajectory.segments), lambda one: one[1].turn if one[1].kind.sampled else f"-{one[0]}")
    for _, numbered in messages:
        group = [segment for _, segment in numbered]
        kind, turn = group[0].kind, group[0].turn
        if kind is SegmentKind.PROMPT:
            placed += (PlacedMessage(message=m, turn=turn) for m in next(prompts))
        elif kind is SegmentKind.RESULT:
            placed += _results(trajectory, group[0], answered)
        else:
            placed.append(PlacedMessage(message=_assistant(trajectory, group), turn=turn))
    return tuple(placed)


def with_object_arguments(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Copy of messages whose call arguments are objects where their text is one: the form chat templates expect."""
    return [
        {**m, "tool_calls": [_object_call(call) for call in m["tool_calls"]]} if m.get("tool_calls") else dict(m)
        for m in messages
    ]


def _prompts(trajectory: Trajectory) -> list[list[Message]]:
    """Messages of every prompt segment, in order."""
    segments = [s for s in trajectory.segments if s.kind is SegmentKind.PROMPT]
    texts = [_prompt_text(trajectory, segment) for segment in segments]
    if trajectory.question in texts:
        n_system = texts.index(trajectory.question)
    else:
        n_system = int(trajectory.question is None and sum(s.turn == 0 for s in segments) > 1)
    return [_prompt(text, trajectory.question, system=i < n_system) for i, text in enumerate(texts)]


def _prompt_text(trajectory: Trajectory, segment: Segment) -> str:
    """Text of a prompt; where tokens hold it, template and all, the question stands for it if there is one."""
    if segment.n_tokens and segment.turn == 0 and trajectory.question is not None:
        return trajectory.question
    return trajectory.segment_text(segment) or ""


def _prompt(text: str, question: str | None, *, system: bool) -> list[Message]:
    if not system and question and text != question and text.endswith(f"\n{question}"):
        instructions = text[: -len(question) - 1]
        return [{"role": "system", "content": instructions}, {"role": "user", "content": question}]
    return [{"role": "system" if system else "user", "content": text}]


def _results(trajectory: Trajectory, segment: Segment, answered: set[int]) -> Iterator[PlacedMessage]:
    """Results of one segment: of all calls of its round where tokens hold them, else of the call with its text."""
    waiting = [i for i, call in enumerate(trajectory.calls) if call.result is not None and i not in answered]
    if segment.n_tokens or segment.text is None:
        found = [i for i in waiting if trajectory.calls[i].turn == segment.turn]
    else:
        found = [i for i in waiting if trajectory.calls[i].result == segment.text][:1]
        if not found:
            yield PlacedMessage(message={"role": "tool", "content": segment.text}, turn=segment.turn)
    answered.update(found)
    for i in found:
        call = trajectory.calls[i]
        named = {"name": call.name} if call.name else {}
        message = {"role": "tool", "tool_call_id": call.id, **named, "content": call.result}
        yield PlacedMessage(message=message, turn=segment.turn, call=i)


def _content_and_thought(trajectory: Trajectory, group: Sequence[Segment], *, has_calls: bool) -> tuple[str, str]:
    content, thought, thinking, pieces = "", "", False, list[str]()
    for segment in group:
        piece = trajectory.segment_text(segment) or ""
        if segment.kind is SegmentKind.CONTROL:  # a think block without a text lies in one piece and changes nothing
            opens, closes = _OPEN in piece and _CLOSE not in piece, _CLOSE in piece and _OPEN not in piece
            if closes and not thinking:  # the template wrote the opening tag before the message began
                thought, content = thought + content, ""
            thinking = opens or (thinking and not closes)
        elif segment.kind is SegmentKind.REASONING and not segment.n_tokens:
            pieces.append(piece)
        elif (segment.kind is SegmentKind.CALL and has_calls) or piece in END_TOKENS:
            continue  # without a name it is an attempt that did not parse: all that is known of it is its text
        elif thinking:
            thought += piece
        else:
            content += piece
    if pieces and (any(segment.n_tokens for segment in group) or len(pieces) > 1):
        thought = pieces.pop(0)
    return "".join(pieces) + content, thought


def _assistant(trajectory: Trajectory, group: Sequence[Segment]) -> Message:
    named = [call for call in trajectory.calls if call.turn == group[0].turn and call.name]
    content, thought = _content_and_thought(trajectory, group, has_calls=bool(named))
    has_tokens = any(segment.n_tokens for segment in group)
    if named and len(written_calls(content)) == len(named):
        for start, stop in reversed([*call_extents(content)]):
            content = content[:start].rstrip() + content[stop:]
    message: Message = {"role": "assistant", "content": content.strip() if has_tokens else content}
    if thought:
        message["reasoning_content"] = thought.strip() if has_tokens else thought
    if named:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in named
        ]
    return message


def _object_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    try:
        parsed = json.loads(function["arguments"])
    except (ValueError, RecursionError, TypeError):
        return dict(call)
    return {**call, "function": {**function, "arguments": parsed}} if isinstance(parsed, dict) else dict(call)

"""From chat messages to segments and calls: the bookkeeping shared by importers of chat-shaped logs.

A `Conversation` takes messages in order. Sampled tokens exist only inside assistant messages; everything else becomes
a segment without tokens (start == stop) that carries its text. Turn numbers follow `Segment.turn`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from deltah.core.results import status_of
from deltah.core.types import Segment, SegmentKind, ToolCall
from deltah.traces.chatlog import FunctionCall, Message
from deltah.traces.spans import has_call_text, hermes_calls, split_message

_RESULT_ROLES = ("tool", "function", "ipython")


@dataclass(slots=True)
class _PendingCall:
    """A call while its result may still come."""

    id: str
    """Unique in the trajectory."""
    server_id: str | None
    name: str
    arguments: str
    turn: int
    result: str | None = None
    duration_s: float | None = None


class Conversation:
    """Segments and calls of one conversation, grown message by message."""

    def __init__(self) -> None:
        """Start with nothing said."""
        self.segments: list[Segment] = []
        self.token_texts: list[str] = []
        self.n_turns = 0
        self.exact = True
        """False once a border between segments could not be kept."""
        self._calls: list[_PendingCall] = []

    @property
    def has_open_calls(self) -> bool:
        """Whether a call has no result yet."""
        return any(call.result is None for call in self._calls)

    def add(self, message: Message, tokens: Sequence[str]) -> None:
        """Append a message.

        Args:
            message: Any role; "tool", "function" and "ipython" are results, "assistant" is the policy.
            tokens: Text of each sampled token of an assistant message; empty where the log has none.
        """
        if message.role == "assistant":
            self._add_turn(message, tokens)
        elif message.role in _RESULT_ROLES:
            self._add_result(message)
        else:
            self._add_text(SegmentKind.PROMPT, self.n_turns, message_text(message.content))

    def add_context(self, message: Message) -> None:
        """Append a message that another trajectory tells: text before this one's first turn, no call of its own."""
        calls = [f"{call.name or ''}({_argument_text(call.arguments)})" for call in _calls(message, ())]
        text = "\n".join(part for part in (message_text(message.content), *calls) if part)
        self._add_text(SegmentKind.PROMPT, self.n_turns, text)

    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Calls with the results that came, in the order they were issued."""
        return tuple(
            ToolCall(
                id=call.id,
                name=call.name,
                arguments=call.arguments,
                turn=call.turn,
                result=call.result,
                status=status_of(call.result),
                duration_s=call.duration_s,
            )
            for call in self._calls
        )

    def _add_turn(self, message: Message, tokens: Sequence[str]) -> None:
        turn = self.n_turns
        calls = _calls(message, tokens)
        content, thought = message_text(message.content), _reasoning_text(message)
        only_calls = bool(calls) and not content.strip() and not thought.strip()
        spans = split_message(tokens, [call.name or "" for call in calls], only_calls=only_calls)
        if not tokens or (thought and not _covers(tokens, thought)):
            self._add_text(SegmentKind.REASONING, turn, thought)
            self.exact &= not (tokens and thought)
        if not tokens:
            self._add_text(SegmentKind.REASONING, turn, content)
        # A server that loses characters shows other tokens than it sampled.
        self.exact &= spans.exact and not (tokens and not _covers(tokens, content))
        offset = len(self.token_texts)
        for kind, start, stop in spans.spans:
            self.segments.append(Segment(kind=kind, start=offset + start, stop=offset + stop, turn=turn))
        self.token_texts += tokens
        if calls and not has_call_text(spans.spans):
            # The logprobs stop at the content, or spell the call in a dialect we do not know.
            self.exact &= not tokens or "".join(tokens).strip() == content.strip()
            for call in calls:
                self._add_text(SegmentKind.CALL, turn, f"{call.name or ''}({_argument_text(call.arguments)})")
        self._register(message, calls, turn)
        self.n_turns += 1

    def _register(self, message: Message, calls: Sequence[FunctionCall], turn: int) -> None:
        ids = [call.id for call in message.tool_calls or []]
        for i, call in enumerate(calls):
            server_id = ids[i] if i < len(ids) else None
            self._calls.append(
                _PendingCall(
                    id=self._unique(server_id or f"call-{len(self._calls)}"),
                    server_id=server_id,
                    name=call.name or "",
                    arguments=_argument_text(call.arguments),
                    turn=turn,
                )
            )

    def _unique(self, wanted: str) -> str:
        """Servers that number calls within a turn repeat their ids; later ones get a suffix."""
        taken = {call.id for call in self._calls}
        candidate, n = wanted, 2
        while candidate in taken:
            candidate, n = f"{wanted}#{n}", n + 1
        return candidate

    def _add_result(self, message: Message) -> None:
        text = message_text(message.content)
        call = self._answered_by(message.tool_call_id)
        if call is not None:
            call.result, call.duration_s = text, message.duration_s
        self._add_text(SegmentKind.RESULT, max(self.n_turns - 1, 0) if call is None else call.turn, text)

    def _answered_by(self, server_id: str | None) -> _PendingCall | None:
        """Return the call a result belongs to: by id, the latest first; without a known id, the oldest open one."""
        waiting = [call for call in self._calls if call.result is None]
        if server_id is not None:
            for call in reversed(waiting):
                if call.server_id == server_id:
                    return call
            waiting = [call for call in waiting if call.server_id is None]
        return waiting[0] if waiting else None

    def _add_text(self, kind: SegmentKind, turn: int, text: str) -> None:
        if not text and kind in (SegmentKind.REASONING, SegmentKind.CALL):
            return
        at, floor = len(self.token_texts), self.segments[-1].turn if self.segments else 0
        # A late result may follow a user message; turns never fall.
        self.segments.append(Segment(kind=kind, start=at, stop=at, turn=max(turn, floor), text=text))


def message_text(content: Any) -> str:
    """Text of a message's content: a string, a list of typed parts (other media as `[type]`), or nothing."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list):
        return "".join(_part_text(part) for part in content)
    return _json_text(content)


def _calls(message: Message, tokens: Sequence[str]) -> list[FunctionCall]:
    if message.tool_calls:
        return [call.function or FunctionCall() for call in message.tool_calls]
    if message.function_call is not None:
        return [message.function_call]
    written = hermes_calls("".join(tokens) or message_text(message.content))
    return [FunctionCall(name=call.name, arguments=call.arguments) for call in written]


def _reasoning_text(message: Message) -> str:
    return message.reasoning_content or message_text(message.reasoning)


def _covers(tokens: Sequence[str], text: str) -> bool:
    return text.strip() in "".join(tokens)


def _argument_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else _json_text({} if arguments is None else arguments)


def _json_text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return _json_text(part)
    text = part.get("text")
    return text if isinstance(text, str) else f"[{part.get('type', 'part')}]"

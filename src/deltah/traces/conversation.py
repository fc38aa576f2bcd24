"""A conversation as a log holds it, and the trajectory that it becomes.

Importers of chat-shaped logs give messages with their packed tokens, and facts. A record may hold a `Conversation`, one
`ApiCall` of it, whose request repeats the history and whose reply is new, or one chunk of a streamed reply;
`deltah.traces.joining` puts these together. Sampled tokens exist only inside assistant messages; everything else
becomes a segment without tokens (start == stop) that carries its text.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec
import numpy as np

from deltah.core.types import (
    CallStatus,
    Estimator,
    Scalar,
    Segment,
    SegmentKind,
    SpanQuality,
    StopReason,
    ToolCall,
    Trajectory,
)
from deltah.errors import ConfigError, DataError, DeltahError, InvalidValueError, VocabularySizeError
from deltah.traces.dialects import split_message, written_calls
from deltah.traces.files import Position
from deltah.traces.logprobs import NO_TOKENS, PackedTokens, concatenate, measure
from deltah.traces.openai_schema import ChatLine, FunctionCall, Message, Response
from deltah.traces.parts import result_text
from deltah.traces.vocabularies import vocab_size_of

_RESULT_ROLES = ("tool", "function", "ipython")
TOKENS_WITHOUT_LOGPROBS: Final = "tokens_without_logprobs"
"""Metadata key: drawn tokens of a trajectory that its logprobs do not list."""
COST: Final = "cost"
"""Metadata key: what the requests of a trajectory cost, in the currency of the log."""


@dataclass(frozen=True, slots=True)
class LoggedMessage:
    """One message; sampled tokens only if it is the assistant's and the log has them."""

    message: Message
    tokens: PackedTokens = NO_TOKENS
    context: bool = False
    """Whether it is told by another trajectory and only repeated here: then its calls are not counted again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a line says beside its messages; None where it does not."""

    id: str | None = None
    group_id: str | None = None
    session: str | None = None
    vocab_size: int | None = None
    model: str | None = None
    sampling_temperature: float | None = None
    top_logprobs: int | None = None
    """K that the request asked for."""
    logprobs_mode: str | None = None
    question: str | None = None
    prediction: str | None = None
    golden_answers: tuple[str, ...] = ()
    outcome: float | None = None
    finish_reason: str | None = None
    started_at: float = math.nan
    """Seconds since the epoch; NaN where the log does not say."""
    ended_at: float = math.nan
    n_without_logprobs: int = 0
    """Tokens that were drawn, by the server's count, beyond those its logprobs list."""
    metadata: dict[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order."""

    messages: list[LoggedMessage]
    facts: Facts
    where: Position
    """Of its first record."""


@dataclass(frozen=True, slots=True)
class ApiCall:
    """One API call of a conversation."""

    history: list[LoggedMessage]
    reply: LoggedMessage
    facts: Facts
    where: Position
    after: tuple[LoggedMessage, ...] = ()
    """What the response holds behind its first message: results of tools that the server ran, and what followed."""

    def alone(self) -> Conversation:
        """The call as a conversation of its own: its whole history and its reply."""
        return Conversation([*self.history, self.reply, *self.after], self.facts, self.where)


@dataclass(frozen=True, slots=True)
class LoggedChunk:
    """One chunk of a streamed response."""

    chunk: Response
    envelope: ChatLine
    """What its line says beside it."""


def to_trajectory(conversation: Conversation, *, default_id: str, vocab_size: int | None = None) -> Trajectory:
    """Build the trajectory of one conversation.

    Args:
        conversation: What was said.
        default_id: Used if the conversation has no id.
        vocab_size: V, used if the log does not state it.

    Raises:
        DataError: if its numbers contradict each other, or its own V is too small for what it holds.
        ConfigError: if `vocab_size` is: it is wrong for all of the log.
    """
    facts = conversation.facts
    built = SegmentBuilder()
    for one in conversation.messages:
        if one.context:
            built.add_context(one.message)
        else:
            built.add(one.message, one.tokens.texts)
    tokens = concatenate([one.tokens for one in conversation.messages if not one.context])
    stated = facts.vocab_size or vocab_size
    size, origin = vocab_size_of(facts.model) if not stated else (stated, None)
    try:
        measured = measure(tokens, size, requested=facts.top_logprobs)
    except VocabularySizeError as error:
        raise _wrong_size(error, facts, vocab_size) from error
    metadata = dict(facts.metadata)
    if origin is not None and measured.estimator is Estimator.TOP_K:
        metadata |= {"vocab_size": size, "vocab_size_from": origin}
    if facts.n_without_logprobs:
        metadata[TOKENS_WITHOUT_LOGPROBS] = facts.n_without_logprobs
    last = conversation.messages[-1].message
    stop_reason = _stop_reason(built, last, facts.finish_reason)
    asked = (message_text(one.message.content) for one in conversation.messages if one.message.role == "user")
    answered, answer = stop_reason is StopReason.ANSWERED, message_text(last.content)
    try:
        return Trajectory(
            id=facts.id if facts.id is not None else default_id,
            segments=tuple(built.segments),
            calls=built.tool_calls(),
            entropy=measured.entropy,
            entropy_lower=measured.lower,
            entropy_upper=measured.upper,
            estimator=measured.estimator,
            temperature=_temperature(facts),
            logprobs=tokens.logprobs if np.isfinite(tokens.logprobs).any() else None,
            token_texts=tuple(tokens.texts) if len(tokens) else None,
            group_id=facts.group_id,
            question=next(asked, None) if facts.question is None else facts.question,
            prediction=facts.prediction if facts.prediction is not None or not answered else answer.strip(),
            golden_answers=facts.golden_answers,
            outcome=facts.outcome,
            stop_reason=stop_reason,
            spans=SpanQuality.EXACT if built.exact else SpanQuality.APPROXIMATE,
            model=facts.model,
            metadata=metadata,
        )
    except InvalidValueError as error:
        raise DataError(str(error)) from error


def _wrong_size(error: VocabularySizeError, facts: Facts, given: int | None) -> DeltahError:
    """The error of a size that is too small, by who stated it."""
    if facts.vocab_size:
        return DataError(f"field vocab_size: {error}")
    if given:
        return ConfigError(f"--vocab-size: {error}")
    return DataError(str(error) if facts.model is None else f"model {facts.model!r}: {error}")


def _temperature(facts: Facts) -> float | None:
    """Temperature of the distribution that the log-probabilities speak of."""
    sampling, mode = facts.sampling_temperature, facts.logprobs_mode or ""
    if mode.startswith("raw") or (mode.startswith("processed") and sampling == 0.0):
        return 1.0  # a server that takes the most likely token divides by no temperature
    return sampling if mode.startswith("processed") or sampling == 1.0 else None


def _stop_reason(built: SegmentBuilder, last: Message, finish_reason: str | None) -> StopReason:
    if last.role == "assistant" and finish_reason == "length":
        return StopReason.LENGTH
    if built.has_open_calls:
        return StopReason.UNANSWERED_CALL
    return StopReason.ANSWERED if last.role == "assistant" else StopReason.UNKNOWN


class SegmentBuilder:
    """Segments and calls of one conversation, grown message by message."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.token_texts: list[str] = []
        self.n_turns = 0
        self.exact = True
        """False once a border between segments could not be kept."""
        self._calls: list[ToolCall] = []
        self._taken: set[str] = set()
        self._repeats: dict[str, int] = {}
        """How often an id was wanted again."""
        self._open: deque[int] = deque()
        """Places of calls in order; answered ones leave when they come to an end, here and below."""
        self._open_by_id: dict[str | None, deque[int]] = {}

    @property
    def has_open_calls(self) -> bool:
        """Whether a call has no result yet."""
        return self._oldest_open(self._open) is not None

    def add(self, message: Message, tokens: Sequence[str]) -> None:
        """Append a message, of an assistant's with the texts of its sampled tokens where the log has them."""
        if message.role == "assistant":
            self._add_turn(message, tokens)
        elif message.role in _RESULT_ROLES:
            self._add_result(message)
        else:
            self._add_text(SegmentKind.PROMPT, self.n_turns, message_text(message.content))

    def add_context(self, message: Message) -> None:
        """Append a message that another trajectory tells: text before this one's first turn, no call of its own."""
        calls = [f"{call.name or ''}({_argument_text(call.arguments)})" for call in _calls(message, ())]
        told = filter(None, (message_text(message.content), *calls))
        self._add_text(SegmentKind.PROMPT, self.n_turns, "\n".join(told))

    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Calls with the results that came, in the order they were issued."""
        return tuple(self._calls)

    def _add_turn(self, message: Message, tokens: Sequence[str]) -> None:
        turn = self.n_turns
        calls = _calls(message, tokens)
        content, thought = message_text(message.content), message.reasoning_content or message_text(message.reasoning)
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
        if calls and not any(span.kind is SegmentKind.CALL for span in spans.spans):
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
            identifier = self._unique(server_id or f"call-{len(self._calls)}")
            self._open.append(len(self._calls))
            self._open_by_id.setdefault(server_id, deque()).append(len(self._calls))
            self._calls.append(
                ToolCall(
                    id=identifier,
                    name=call.name or "",
                    arguments=_argument_text(call.arguments),
                    turn=turn,
                    status=CallStatus.UNANSWERED,
                )
            )

    def _unique(self, wanted: str) -> str:
        """Servers that number calls within a turn repeat their ids; later ones get a suffix."""
        candidate = wanted
        while candidate in self._taken:
            self._repeats[wanted] = n = self._repeats.get(wanted, 1) + 1
            candidate = f"{wanted}#{n}"
        self._taken.add(candidate)
        return candidate

    def _add_result(self, message: Message) -> None:
        text = result_text(message.content)
        at, turn = self._answered_by(message.tool_call_id), max(self.n_turns - 1, 0)
        if at is not None:
            status = CallStatus.ERROR if message.is_error is True else CallStatus.of(text)
            answered = replace(self._calls[at], result=text, status=status, duration_s=message.duration_s)
            self._calls[at], turn = answered, answered.turn
        self._add_text(SegmentKind.RESULT, turn, text)

    def _answered_by(self, server_id: str | None) -> int | None:
        """Place of the call that a result belongs to: by id the latest, without a known id the oldest open one."""
        if server_id is None:
            return self._oldest_open(self._open)
        same = self._open_by_id.get(server_id)
        while same and self._calls[same[-1]].result is not None:
            same.pop()
        return same[-1] if same else self._oldest_open(self._open_by_id.get(None))

    def _oldest_open(self, places: deque[int] | None) -> int | None:
        """Place of the first call without a result; those before it are dropped, so that no search meets them again."""
        while places and self._calls[places[0]].result is not None:
            places.popleft()
        return places[0] if places else None

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
    return written_calls("".join(tokens) or message_text(message.content))


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

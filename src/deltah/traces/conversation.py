"""A conversation as a log holds it, and the trajectory that it becomes.

Importers give messages with their packed tokens, and facts; `deltah.traces.joining` joins API calls and chunks.
Sampled tokens exist only inside assistant messages; everything else becomes a segment without tokens (start == stop)
that carries its text.
"""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
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
from deltah.errors import ConfigError, DataError, DeltahError, VocabularySizeError
from deltah.traces.dialects import split_message, written_calls
from deltah.traces.files import Position
from deltah.traces.logprobs import NO_TOKENS, PackedTokens, concatenate, measure
from deltah.traces.openai_schema import ChatLine, FunctionCall, Message, Response
from deltah.traces.parts import result_text
from deltah.traces.vocabularies import vocab_size_of

_RESULT_ROLES = ("tool", "function", "ipython")
TOKENS_WITHOUT_LOGPROBS: Final = "tokens_without_logprobs"
"""Metadata key: drawn tokens of a trajectory that its logprobs do not list."""
UNCLAIMED: Final = "results_without_call"
"""Metadata key: results, or runs of tools, that no call of a trajectory accounts for."""
COST: Final = "cost"
"""Metadata key: what the requests of a trajectory cost, in the currency of the log."""


@dataclass(frozen=True, slots=True)
class LoggedMessage:
    """One message; sampled tokens only if it is the assistant's and the log has them."""

    message: Message
    tokens: PackedTokens = NO_TOKENS
    context: bool = False
    """Whether it belongs to another trajectory and is only repeated here: then its calls are not counted again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a log says of a conversation beside its messages; None where it does not."""

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
    """Seconds since 1970; NaN where the log does not say."""
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


def to_trajectory(conversation: Conversation, vocab_size: int | None = None) -> Trajectory:
    """Trajectory of one conversation; a `vocab_size` that is too small is a `ConfigError`, wrong for all of the log."""
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
    if built.n_unclaimed:
        metadata[UNCLAIMED] = built.n_unclaimed
    last = conversation.messages[-1].message
    stop_reason = _stop_reason(built, last, facts.finish_reason)
    asked = (message_text(one.message.content) for one in conversation.messages if one.message.role == "user")
    answered, answer = stop_reason is StopReason.ANSWERED, message_text(last.content)
    return Trajectory(
        id=conversation.where.default_id if facts.id is None else facts.id,
        segments=tuple(built.segments),
        calls=tuple(built.calls),
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


def _wrong_size(error: VocabularySizeError, facts: Facts, given: int | None) -> DeltahError:
    """The error of a size that is too small, by who stated it."""
    if facts.vocab_size:
        return DataError(f"field vocab_size: {error}")
    if given:
        return ConfigError(f"--vocab-size: {error}")
    return DataError(str(error) if facts.model is None else f"model {facts.model!r}: {error}")


def _temperature(facts: Facts) -> float | None:
    """Temperature of the distribution that the log-probabilities describe."""
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
        self.calls: list[ToolCall] = []
        """In the order they were issued, with the results that came."""
        self.n_tokens = 0
        self.n_turns = 0
        self.exact = True
        """False once a border between segments could not be kept."""
        self.n_unclaimed = 0
        """Results that no call waits for."""
        self._taken: set[str] = set()
        self._repeats: dict[str, int] = {}
        """How often an id was wanted again."""
        self._open: OrderedDict[int, str | None] = OrderedDict()
        """Places of calls without a result, with the id that the server gave."""
        self._open_by_id: defaultdict[str | None, OrderedDict[int, None]] = defaultdict(OrderedDict)

    @property
    def has_open_calls(self) -> bool:
        """Whether a call has no result yet."""
        return bool(self._open)

    def add(self, message: Message, tokens: Sequence[str]) -> None:
        """Append a message, of an assistant's with the texts of its sampled tokens where the log has them."""
        if message.role == "assistant":
            self._add_turn(message, tokens)
        elif message.role in _RESULT_ROLES:
            self._add_result(message)
        else:
            self._add_text(SegmentKind.PROMPT, self.n_turns, message_text(message.content))

    def add_context(self, message: Message) -> None:
        """Append a message of another trajectory: text before this one's first turn, no call of its own."""
        calls = [f"{call.name or ''}({_argument_text(call.arguments)})" for call in _calls(message, "")]
        text = "\n".join(filter(None, (message_text(message.content), *calls)))
        self._add_text(SegmentKind.PROMPT, self.n_turns, text)

    def _add_turn(self, message: Message, tokens: Sequence[str]) -> None:
        turn, sampled = self.n_turns, "".join(tokens)
        calls = _calls(message, sampled)
        content, thought = message_text(message.content), message.reasoning_content or message_text(message.reasoning)
        only_calls = bool(calls) and not content.strip() and not thought.strip()
        spans = split_message(tokens, [call.name or "" for call in calls], only_calls=only_calls)
        if not tokens or (thought and thought.strip() not in sampled):
            self._add_text(SegmentKind.REASONING, turn, thought)
            self.exact &= not (tokens and thought)
        if not tokens:
            self._add_text(SegmentKind.REASONING, turn, content)
        # A server that loses characters shows other tokens than it sampled.
        self.exact &= spans.exact and (not tokens or content.strip() in sampled)
        for kind, start, stop in spans.spans:
            self.segments.append(Segment(kind=kind, start=self.n_tokens + start, stop=self.n_tokens + stop, turn=turn))
        self.n_tokens += len(tokens)
        if calls and not any(span.kind is SegmentKind.CALL for span in spans.spans):
            # The logprobs stop at the content, or spell the call in a dialect we do not know.
            self.exact &= not tokens or sampled.strip() == content.strip()
            for call in calls:
                self._add_text(SegmentKind.CALL, turn, f"{call.name or ''}({_argument_text(call.arguments)})")
        self._register(message, calls, turn)
        self.n_turns += 1

    def _register(self, message: Message, calls: Sequence[FunctionCall], turn: int) -> None:
        for i, call in enumerate(calls):
            server_id = message.tool_calls[i].id if message.tool_calls else None
            identifier = self._unique(server_id or f"call-{len(self.calls)}")
            self._open[len(self.calls)] = server_id
            self._open_by_id[server_id][len(self.calls)] = None
            name, arguments = call.name or "", _argument_text(call.arguments)
            self.calls.append(
                ToolCall(id=identifier, name=name, arguments=arguments, turn=turn, status=CallStatus.UNANSWERED)
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
        text = message.content if isinstance(message.content, str) else result_text(message.content)
        at, turn = self._answered_by(message.tool_call_id), max(self.n_turns - 1, 0)
        if at is not None:
            del self._open_by_id[self._open.pop(at)][at]
            status = CallStatus.of(text, _stated_failure(message))
            answered = replace(self.calls[at], result=text, status=status, duration_s=message.duration_s)
            self.calls[at], turn = answered, answered.turn
        self.n_unclaimed += at is None
        self._add_text(SegmentKind.RESULT, turn, text)

    def _answered_by(self, server_id: str | None) -> int | None:
        """Place of the call that a result belongs to: by id the latest, without a known id the oldest open one."""
        if server_id is None:
            return next(iter(self._open), None)
        latest = next(reversed(self._open_by_id[server_id]), None)
        return next(iter(self._open_by_id[None]), None) if latest is None else latest

    def _add_text(self, kind: SegmentKind, turn: int, text: str) -> None:
        if not text and kind in (SegmentKind.REASONING, SegmentKind.CALL):
            return
        # A late result may follow a user message; turns never fall.
        turn = max(turn, self.segments[-1].turn) if self.segments else turn
        self.segments.append(Segment(kind=kind, start=self.n_tokens, stop=self.n_tokens, turn=turn, text=text))


def message_text(content: Any) -> str:
    """Text of a message's content: a string, a list of typed parts (other media as `[type]`), or nothing."""
    if isinstance(content, list):
        return "".join(_part_text(part) if isinstance(part, dict) else _as_text(part) for part in content)
    return "" if content is None else _as_text(content)


def _calls(message: Message, sampled: str) -> list[FunctionCall]:
    if message.tool_calls:
        return [call.function or FunctionCall() for call in message.tool_calls]
    if message.function_call is not None:
        return [message.function_call]
    return written_calls(sampled or message_text(message.content))


def _stated_failure(message: Message) -> bool | None:
    """Whether a tool failed, as the message with its result states it; None where it does not."""
    if isinstance(message.is_error, bool):
        return message.is_error
    return {"error": True, "success": False}.get(message.status) if isinstance(message.status, str) else None


def _argument_text(arguments: Any) -> str:
    return _as_text({} if arguments is None else arguments)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _part_text(part: dict[str, Any]) -> str:
    text = part.get("text")
    return text if isinstance(text, str) else f"[{part.get('type', 'part')}]"

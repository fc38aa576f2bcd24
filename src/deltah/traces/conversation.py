"""A conversation as a log holds it, and the trajectory that it becomes.

Importers of chat-shaped logs give messages with their packed tokens, and facts. A record may hold a `Conversation`, or
one `ApiCall` of it, whose request repeats the history and whose reply is new; `deltah.traces.joining` puts the calls
together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from deltah.core.types import Estimator, Scalar, SpanQuality, StopReason, Trajectory
from deltah.errors import ConfigError, DataError, DeltahError, InvalidValueError, VocabularySizeError
from deltah.traces.files import Position
from deltah.traces.logprobs import NO_TOKENS, PackedTokens, concatenate, measure
from deltah.traces.openai_schema import Message
from deltah.traces.turns import SegmentBuilder, message_text
from deltah.traces.vocabularies import vocab_size_of

TOKENS_WITHOUT_LOGPROBS: Final = "tokens_without_logprobs"
"""Metadata key: drawn tokens of a trajectory that its logprobs do not list."""


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

    def alone(self) -> Conversation:
        """The call as a conversation of its own: its whole history and its reply."""
        return Conversation([*self.history, self.reply], self.facts, self.where)


def to_trajectory(conversation: Conversation, *, default_id: str, vocab_size: int | None = None) -> Trajectory:
    """Build the trajectory of one conversation.

    Args:
        conversation: What was said.
        default_id: Used if the conversation has no id.
        vocab_size: V, used if the log does not state it.

    Raises:
        DataError: if its numbers contradict each other, or the size that its records state, or its model's name, is
            too small for what it holds.
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
    known: dict[str, Scalar] = {"vocab_size": size, "vocab_size_from": origin}
    assumed = known if origin is not None and measured.estimator is Estimator.TOP_K else {}
    uncounted = {TOKENS_WITHOUT_LOGPROBS: facts.n_without_logprobs} if facts.n_without_logprobs else {}
    last = conversation.messages[-1].message
    stop_reason = _stop_reason(built, last, facts.finish_reason)
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
            question=facts.question if facts.question is not None else _first_user_text(conversation.messages),
            prediction=facts.prediction if facts.prediction is not None else _final_text(last, stop_reason),
            golden_answers=facts.golden_answers,
            outcome=facts.outcome,
            stop_reason=stop_reason,
            spans=SpanQuality.EXACT if built.exact else SpanQuality.APPROXIMATE,
            model=facts.model,
            metadata=facts.metadata | assumed | uncounted,
        )
    except InvalidValueError as error:
        raise DataError(str(error)) from error


def merge_facts(parts: Sequence[Facts], name: str | None) -> Facts:
    """Facts of a conversation from those of its API calls: the last word on grades, the first on all else.

    Args:
        parts: In order.
        name: The conversation's id.
    """

    def first(key: str) -> Any:
        return next((value for part in parts if (value := getattr(part, key)) is not None), None)

    def last(key: str) -> Any:
        return next((value for part in reversed(parts) if (value := getattr(part, key)) is not None), None)

    metadata = {key: value for part in parts for key, value in part.metadata.items()}
    temperatures = {part.sampling_temperature for part in parts}
    modes = {part.logprobs_mode for part in parts}
    # Entropies of different temperatures must not pass for one measurement.
    mixed = len(temperatures) > 1 or len(modes) > 1
    if mixed:
        metadata = {k: v for k, v in metadata.items() if k not in ("sampling_temperature", "logprobs_mode")}
        metadata["mixed_sampling"] = True
    return Facts(
        id=name,
        group_id=first("group_id"),
        session=first("session"),
        vocab_size=first("vocab_size"),
        model=first("model"),
        sampling_temperature=None if mixed else first("sampling_temperature"),
        top_logprobs=max((p.top_logprobs for p in parts if p.top_logprobs is not None), default=None),
        logprobs_mode=None if mixed else first("logprobs_mode"),
        question=first("question"),
        prediction=last("prediction"),
        golden_answers=next((p.golden_answers for p in reversed(parts) if p.golden_answers), ()),
        outcome=last("outcome"),
        finish_reason=parts[-1].finish_reason,
        n_without_logprobs=sum(part.n_without_logprobs for part in parts),
        metadata=metadata | ({"n_requests": len(parts)} if len(parts) > 1 else {}),
    )


def _wrong_size(error: VocabularySizeError, facts: Facts, given: int | None) -> DeltahError:
    """The error of a size that is too small by who stated it: the caller's is wrong for the whole log."""
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


def _first_user_text(messages: Sequence[LoggedMessage]) -> str | None:
    return next((message_text(s.message.content) for s in messages if s.message.role == "user"), None)


def _final_text(last: Message, stop_reason: StopReason) -> str | None:
    return message_text(last.content).strip() if stop_reason is StopReason.ANSWERED else None


def _stop_reason(built: SegmentBuilder, last: Message, finish_reason: str | None) -> StopReason:
    if last.role == "assistant" and finish_reason == "length":
        return StopReason.LENGTH
    if built.has_open_calls:
        return StopReason.UNANSWERED_CALL
    return StopReason.ANSWERED if last.role == "assistant" else StopReason.UNKNOWN

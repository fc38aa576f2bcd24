"""Importer for OpenAI-style chat logs with logprobs: one JSON object, one conversation, one trajectory.

Two line forms: `messages`, in which each assistant message carries its choice's `logprobs` block; or `request` and
`response`, where the first choice is the last assistant turn.

* segments: the logprob tokens of each assistant message, split by `deltah.traces.spans`. Every other message is a
  segment without tokens that carries its text; so is a call, or reasoning, that the server left out of the logprobs.
* calls: `tool_calls`, or `function_call`, or Hermes markup left in the text; `call-N` where the server gave no id.
* result: the `tool` message with the call's id, else the oldest unanswered call gets it; none: unanswered.
* status: error where the result reads as one; the rule is `deltah.core.results.is_error`.
* entropy: `top_logprobs` through `deltah.traces.topk`; exact where they cover `vocab_size` tokens; NaN without.
* temperature: of the *reported* distribution: 1 if `logprobs_mode` is raw, the sampling temperature if it is processed
  or 1; None where the log does not say.
* metadata: flat `metadata`, `sampling_temperature`, `logprobs_mode`, `n_choices` if more than one was drawn.
* outcome: `outcome`, else `score`, in [0, 1]. golden_answers: `golden_answers`, else `answer`.

`spans` is approximate where a border lies inside a token, where a message has calls but neither the call's text nor
the message's text is what the logprob tokens spell, or where the reasoning has no logprobs although the answer has.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from deltah.core.types import FloatArray, Scalar, SpanQuality, StopReason, Trajectory
from deltah.errors import DataError, InvalidValueError
from deltah.traces.chatlog import ChatLine, Choice, LogprobsBlock, Message, TokenLogprob
from deltah.traces.conversation import Conversation, message_text
from deltah.traces.decode import decode_line
from deltah.traces.topk import STAND_IN, measure

_DECODER = msgspec.json.Decoder(ChatLine, strict=True)


def decode(line: bytes, *, default_id: str, vocab_size: int | None = None) -> Trajectory:
    """Read one line.

    Args:
        line: JSON text.
        default_id: Used if the line has no `id`.
        vocab_size: V, used if the line has no `vocab_size`.

    Raises:
        DataError: if the line does not fit the format, its response is an error, or its numbers contradict each other.
    """
    return to_trajectory(decode_line(line, _DECODER), default_id=default_id, vocab_size=vocab_size)


def to_trajectory(log: ChatLine, *, default_id: str, vocab_size: int | None = None) -> Trajectory:
    """Build the trajectory of a decoded line; see `decode`."""
    _check_mode(log.logprobs_mode)
    messages, choice = _messages(log)
    conversation = Conversation()
    tokens: list[TokenLogprob] = []
    for message in messages:
        block = _tokens(message.logprobs) if message.role == "assistant" else []
        conversation.add(message, _token_texts(block))
        tokens += block
    if conversation.n_turns == 0:
        raise DataError("field messages: no message of role 'assistant'; there is nothing to measure")
    sampled = _sampled_logprobs(tokens)
    top = [[t.logprob for t in token.top_logprobs] if token.top_logprobs else [] for token in tokens]
    measured = measure(sampled, top, log.vocab_size or vocab_size)
    last = messages[-1]
    stop_reason = _stop_reason(conversation, last, (choice and choice.finish_reason) or last.finish_reason)
    try:
        return Trajectory(
            id=_identifier(log, default_id),
            segments=tuple(conversation.segments),
            calls=conversation.tool_calls(),
            entropy=measured.entropy,
            entropy_lower=measured.lower,
            entropy_upper=measured.upper,
            estimator=measured.estimator,
            temperature=_temperature(log),
            logprobs=sampled if np.isfinite(sampled).any() else None,
            token_texts=tuple(conversation.token_texts) if tokens else None,
            group_id=None if log.group_id is None else str(log.group_id),
            question=log.question if log.question is not None else _first_user_text(messages),
            prediction=log.prediction if log.prediction is not None else _final_text(last, stop_reason),
            golden_answers=_golden_answers(log),
            outcome=_outcome(log),
            stop_reason=stop_reason,
            spans=SpanQuality.EXACT if conversation.exact else SpanQuality.APPROXIMATE,
            model=log.model or (log.response and log.response.model) or (log.request and log.request.model) or None,
            metadata=_metadata(log),
        )
    except InvalidValueError as error:
        raise DataError(str(error)) from error


def _check_mode(logprobs_mode: str | None) -> None:
    if logprobs_mode is not None and logprobs_mode.endswith("logits"):
        raise DataError(
            f"field logprobs_mode: {logprobs_mode!r} reports logits; expected log-probabilities, so run the "
            "server with raw_logprobs or processed_logprobs"
        )


def _messages(log: ChatLine) -> tuple[list[Message], Choice | None]:
    """History and, for a pair, the choice whose message ends it."""
    if log.response is None:
        if not log.messages:
            raise DataError(
                "field messages: missing or empty; expected a list of chat messages, or request and response"
            )
        return log.messages, None
    if log.response.error is not None or not log.response.choices:
        what = "an error" if log.response.error is not None else "no choices"
        raise DataError(f"field response: it holds {what}; there is no assistant message to measure")
    choice = log.response.choices[0]
    if choice.message is None:
        raise DataError("field response.choices[0].message: missing; streamed chunks must be assembled first")
    reply = choice.message
    if reply.logprobs is None:
        reply = msgspec.structs.replace(reply, logprobs=choice.logprobs)
    history = log.request.messages if log.request is not None else log.messages or []
    return [*history, reply], choice


def _tokens(block: LogprobsBlock | list[TokenLogprob] | None) -> list[TokenLogprob]:
    if isinstance(block, LogprobsBlock):
        return block.content or []
    return block or []


def _token_texts(tokens: Sequence[TokenLogprob]) -> list[str]:
    """Text of each token; their concatenation is the message's text.

    A character whose bytes are spread over several tokens appears at the token that completes it, if the server gives
    bytes; where it gives none, the token's own text stands.
    """
    texts = [token.token for token in tokens]
    split = any("\ufffd" in text or text.startswith("bytes:") for text in texts)
    if not split or any(token.bytes is None for token in tokens):
        return texts
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    try:
        return [decoder.decode(bytes(token.bytes)) if token.bytes else token.token for token in tokens]
    except ValueError as error:
        raise DataError("field logprobs.content.bytes: a byte is not in 0..255") from error


def _sampled_logprobs(tokens: Sequence[TokenLogprob]) -> FloatArray:
    """(T,) with NaN for a missing one and for a server's stand-in."""
    values = np.array([token.logprob for token in tokens], dtype=np.float64)
    if (values > 1e-3).any():
        t = int(np.argmax(values > 1e-3))
        raise DataError(f"token {t} has the logprob {values[t]:.6g}; expected a natural logarithm, at most 0")
    return np.where(values > STAND_IN, values, np.nan)


def _identifier(log: ChatLine, default_id: str) -> str:
    if log.id is not None:
        return str(log.id)
    return (log.response.id if log.response is not None else None) or default_id


def _sampling_temperature(log: ChatLine) -> float | None:
    if log.temperature is not None or log.request is None:
        return log.temperature
    return log.request.temperature


def _temperature(log: ChatLine) -> float | None:
    """Temperature of the distribution that the log-probabilities speak of."""
    sampling, mode = _sampling_temperature(log), log.logprobs_mode or ""
    if mode.startswith("raw"):
        return 1.0
    return sampling if mode.startswith("processed") or sampling == 1.0 else None


def _metadata(log: ChatLine) -> dict[str, Scalar]:
    extra: dict[str, Scalar] = {
        key: value
        for key, value in (log.metadata or {}).items()
        if value is None or isinstance(value, str | int | float)
    }
    if (sampling := _sampling_temperature(log)) is not None:
        extra["sampling_temperature"] = sampling
    if log.logprobs_mode is not None:
        extra["logprobs_mode"] = log.logprobs_mode
    n_choices = len(log.response.choices or []) if log.response is not None else 1
    return extra | ({"n_choices": n_choices} if n_choices > 1 else {})


def _outcome(log: ChatLine) -> float | None:
    given = log.outcome if log.outcome is not None else log.score
    return None if given is None else float(given)


def _golden_answers(log: ChatLine) -> tuple[str, ...]:
    answers: list[Any] = log.golden_answers if log.golden_answers is not None else [log.answer]
    if len(answers) == 1 and isinstance(answers[0], list):
        answers = answers[0]
    return tuple(a if isinstance(a, str) else json.dumps(a) for a in answers if a is not None)


def _first_user_text(messages: Sequence[Message]) -> str | None:
    return next((message_text(m.content) for m in messages if m.role == "user"), None)


def _final_text(last: Message, stop_reason: StopReason) -> str | None:
    return message_text(last.content).strip() if stop_reason is StopReason.ANSWERED else None


def _stop_reason(conversation: Conversation, last: Message, finish_reason: str | None) -> StopReason:
    if last.role == "assistant" and finish_reason == "length":
        return StopReason.LENGTH
    if conversation.has_open_calls:
        return StopReason.UNANSWERED_CALL
    return StopReason.ANSWERED if last.role == "assistant" else StopReason.UNKNOWN

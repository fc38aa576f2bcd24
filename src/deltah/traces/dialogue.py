"""A conversation as a log holds it, before it is a trajectory: messages with their packed tokens, and facts.

One log line becomes a `Dialogue` of its own (`messages`), or an `Exchange`: one API call, whose request repeats the
history and whose reply is new. Exchanges become dialogues in `deltah.traces.joining`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from deltah.core.types import Scalar
from deltah.errors import DataError
from deltah.traces.chatlog import ChatLine, Choice, Message, Request, Response
from deltah.traces.chunks import assemble, parse_event_stream
from deltah.traces.fields import epoch_seconds, seconds, unfit_outcome, unit
from deltah.traces.files import Position
from deltah.traces.tokens import NO_TOKENS, PackedTokens, pack


@dataclass(frozen=True, slots=True)
class Said:
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
class Dialogue:
    """One conversation."""

    said: list[Said]
    facts: Facts
    where: Position
    """Of its first line."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One API call."""

    history: list[Said]
    reply: Said
    facts: Facts
    where: Position


def read_conversation(log: ChatLine, where: Position) -> Dialogue:
    """The conversation of a line whose messages carry their tokens.

    Raises:
        DataError: if there is no assistant message in it, or its numbers contradict each other.
    """
    _check_mode(log.logprobs_mode)
    if log.request is not None:
        raise DataError("field response: missing beside 'request'; log each request together with its response")
    if not log.messages:
        raise DataError("field messages: missing or empty; expected a list of chat messages, or request and response")
    if not any(message.role == "assistant" for message in log.messages):
        raise DataError("field messages: no message of role 'assistant'; there is nothing to measure")
    return Dialogue([_said(message) for message in log.messages], _facts(log, None, log.messages[-1]), where)


def read_call(log: ChatLine, where: Position) -> Exchange:
    """The API call of a line that holds a response.

    Raises:
        DataError: if the response is an error or holds no assistant message, or its numbers contradict each other.
    """
    _check_mode(log.logprobs_mode)
    response = whole_response(log)
    refused = response.error is not None or response.object == "error"
    if refused or not response.choices:
        what = "an error" if refused else "no choices"
        raise DataError(f"field response: it holds {what}; there is no assistant message to measure")
    choice = response.choices[0]
    if choice.message is None:
        raise DataError("field response.choices[0].message: missing; expected a whole response or its chunks")
    block = choice.message.logprobs if choice.logprobs is None else choice.logprobs
    reply = Said(_without_logprobs(choice.message), pack(block))
    request = _request(log)
    history = request.messages if request is not None else log.messages or []
    facts = replace(_facts(log, response, choice), n_without_logprobs=_unlisted(response, choice, len(reply.tokens)))
    return Exchange([_said(m) for m in history], reply, facts, where)


def whole_response(log: ChatLine) -> Response:
    """The response of a line, its chunks assembled."""
    given: Any = log.response
    if isinstance(given, str):
        given = parse_event_stream(given)
    if isinstance(given, list) or log.chunks is not None:
        return assemble(given if isinstance(given, list) else log.chunks or [])
    if given is None:
        return Response(id=_text(log.id), choices=log.choices, model=log.model, error=log.error, usage=log.usage)
    unwrapped: Response = given.body if given.body is not None else given
    if unwrapped.choices and any(choice.delta is not None for choice in unwrapped.choices):
        return assemble([unwrapped])
    return unwrapped


def merge_facts(parts: Sequence[Facts], name: str | None) -> Facts:
    """Facts of a conversation from those of its exchanges: the last word on grades, the first on all else.

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


def _unlisted(response: Response, choice: Choice, n_listed: int) -> int:
    """Drawn tokens of a reply that its logprobs do not list; 0 where the log has no logprobs or does not say.

    llama.cpp's own server, and SGLang in a stream without a parser, list the several tokens of one character once,
    hosted APIs leave out hidden reasoning or calls. A token that only ends the message may be counted and not listed;
    usage is that of all choices together.
    """
    drawn = response.usage.get("completion_tokens") if isinstance(response.usage, dict) else None
    if not isinstance(drawn, int) or not n_listed or len(response.choices or ()) != 1:
        return 0
    end = choice.finish_reason != "length"
    return drawn - n_listed if drawn > n_listed + end else 0


def _said(message: Message) -> Said:
    if message.role != "assistant":
        return Said(_without_logprobs(message))
    return Said(_without_logprobs(message), pack(message.logprobs))


def _without_logprobs(message: Message) -> Message:
    return message if message.logprobs is None else msgspec.structs.replace(message, logprobs=None)


def _check_mode(logprobs_mode: str | None) -> None:
    if logprobs_mode is not None and logprobs_mode.endswith("logits"):
        raise DataError(
            f"field logprobs_mode: {logprobs_mode!r} reports logits; expected log-probabilities, so run the "
            "server with raw_logprobs or processed_logprobs"
        )


def _request(log: ChatLine) -> Request | None:
    if log.request is None:
        return None
    return log.request if log.request.body is None else log.request.body


def _facts(log: ChatLine, response: Response | None, last: Choice | Message) -> Facts:
    request = _request(log)
    temperature = log.temperature if log.temperature is not None or request is None else request.temperature
    own_id = log.id if log.id is not None else log.custom_id
    return Facts(
        id=_text(own_id) or (response.id if response is not None else None),
        group_id=_text(log.group_id),
        session=_session(log),
        vocab_size=log.vocab_size,
        model=log.model or (response and response.model) or (request and request.model) or None,
        sampling_temperature=temperature,
        top_logprobs=request.top_logprobs if request is not None else None,
        logprobs_mode=log.logprobs_mode,
        question=log.question,
        prediction=log.prediction,
        golden_answers=_golden_answers(log),
        outcome=unit(_grade(log)),
        finish_reason=last.finish_reason,
        started_at=epoch_seconds(log.started_at),
        ended_at=epoch_seconds(log.started_at) + seconds(log.duration_s),
        metadata=_metadata(log, temperature, response),
    )


_SESSION_KEYS = ("session_id", "conversation_id", "thread_id", "trace_id")


def _session(log: ChatLine) -> str | None:
    """Id under which a client groups the calls of one conversation, beside or inside `metadata`."""
    request = _request(log)
    inside = [m for m in (log.metadata, request.metadata if request else None) if isinstance(m, dict)]
    for key in _SESSION_KEYS:
        for value in (getattr(log, key), *(m.get(key) for m in inside)):
            if isinstance(value, str | int) and value != "":
                return str(value)
    return None


def _metadata(log: ChatLine, temperature: float | None, response: Response | None) -> dict[str, Scalar]:
    extra: dict[str, Scalar] = {
        key: value
        for key, value in (log.metadata or {}).items()
        if value is None or isinstance(value, str | int | float)
    }
    if temperature is not None:
        extra["sampling_temperature"] = temperature
    if log.logprobs_mode is not None:
        extra["logprobs_mode"] = log.logprobs_mode
    n_choices = len(response.choices or []) if response is not None else 1
    return extra | unfit_outcome(_grade(log)) | ({"n_choices": n_choices} if n_choices > 1 else {})


def _grade(log: ChatLine) -> float | bool | None:
    return log.outcome if log.outcome is not None else log.score


def _golden_answers(log: ChatLine) -> tuple[str, ...]:
    answers: list[Any] = log.golden_answers if log.golden_answers is not None else [log.answer]
    if len(answers) == 1 and isinstance(answers[0], list):
        answers = answers[0]
    return tuple(a if isinstance(a, str) else json.dumps(a) for a in answers if a is not None)


def _text(value: str | int | None) -> str | None:
    return None if value is None else str(value)

"""Importer for OpenAI-style chat logs with logprobs, of vLLM, SGLang, llama.cpp and compatible servers.

A line is a conversation (`messages`), an API call (`request` with `response`, or a bare response), or one chunk of a
streamed response; `deltah.traces.joining` joins the last two. docs/formats/openai.md states the mapping of every field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

import msgspec
import numpy as np

from deltah.core.types import Scalar, Trajectory
from deltah.errors import DataError
from deltah.traces.chattext import prompt_messages
from deltah.traces.conversation import ApiCall, Conversation, Facts, LoggedChunk, LoggedMessage, to_trajectory
from deltah.traces.files import Position
from deltah.traces.importing import (
    GRADES,
    IMPORTERS,
    RecordContext,
    decode_line,
    epoch_seconds,
    golden_answers,
    outcome_of,
    scalars,
    seconds,
    tool_kinds,
    unfit_outcome,
)
from deltah.traces.logprobs import NO_TOKENS, after_text, pack
from deltah.traces.openai_schema import ChatLine, Choice, Message, Request, Response
from deltah.traces.parts import expand
from deltah.traces.streams import assemble, error_of, is_streamed

T = TypeVar("T")
_SESSION_FIELDS: Final = ("session_id", "conversation_id", "thread_id", "trace_id")
_BARE: Final = ("choices", "model", "object", "error", "usage", "prompt_filter_results")
"""Fields of a response or chunk that is a line of its own, beside its id."""
_RESPONSE: Final = msgspec.json.Decoder(Response)


@IMPORTERS.register(
    "openai",
    meaning="OpenAI-style chat log with logprobs",
    fields=(("messages", "response", "request", "choices"),),
    schema=ChatLine,
)
def read(log: ChatLine, context: RecordContext) -> Trajectory | ApiCall | LoggedChunk:
    """Read one line: a conversation, an API call of one, or a chunk of a stream."""
    if (chunk := _logged_chunk(log)) is not None:
        return chunk
    if log.response is not None or log.chunks is not None or log.choices is not None:
        return read_call(log, context.where)
    if log.request is not None:
        raise DataError("field response: missing beside 'request'; log each request together with its response")
    if not log.messages:
        raise DataError("field messages: missing or empty; expected a list of chat messages, or request and response")
    if not any(message.role == "assistant" for message in log.messages):
        raise DataError("field messages: no message of role 'assistant'; there is nothing to measure")
    messages = _said(log.messages)
    conversation = Conversation(messages, _facts(log, None, log.messages[-1]), context.where)
    return to_trajectory(conversation, context.vocab_size)


def read_call(log: ChatLine, where: Position) -> ApiCall:
    """The API call of a line that holds a response; `DataError` if that is an error or holds no assistant message."""
    response = whole_response(log)
    choice = _answer(response)
    request = _request(log)
    if choice.message is None:
        return _completion(log, response, choice, where)
    block = choice.message.logprobs if choice.logprobs is None else choice.logprobs
    first, after = _expanded(choice.message)
    reply = LoggedMessage(first, pack(block, choice.token_ids))
    history = request.messages if request is not None else log.messages or []
    facts = replace(_facts(log, response, choice), n_without_logprobs=_unlisted(response, choice, len(reply.tokens)))
    return ApiCall(_said(history), reply, facts, where, tuple(map(LoggedMessage, after)))


def _answer(response: Response) -> Choice:
    """The choice whose message is the reply."""
    error = "an error" if response.error or response.object == "error" else None
    wrong = error or error_of((response.choices or [])[:1]) or (None if response.choices else "no choices")
    if wrong is not None or not response.choices:
        raise DataError(f"field response: it holds {wrong}; there is no assistant message to measure")
    choice = response.choices[0]
    if choice.message is None and choice.text is None:
        raise DataError("field response.choices[0].message: missing; expected a whole response or its chunks")
    return choice


def _completion(log: ChatLine, response: Response, choice: Choice, where: Position) -> ApiCall:
    """A text completion as an API call: the prompt gives the history where a chat template wrote it."""
    request, text = _request(log), choice.text or ""
    given = log.prompt if request is None or request.prompt is None else request.prompt
    prompt = given[0] if isinstance(given, list) and given and isinstance(given[0], str) else given
    prompt = prompt if isinstance(prompt, str) else ""
    tokens = pack(choice.logprobs, choice.token_ids)
    echoed = request is not None and request.echo is True
    if prompt and text.startswith(prompt) and (echoed or np.isnan(tokens.logprobs[:1]).any()):
        text, tokens = text.removeprefix(prompt), after_text(tokens, prompt)
    history = prompt_messages(prompt).messages if prompt else []
    facts = replace(_facts(log, response, choice), n_without_logprobs=_unlisted(response, choice, len(tokens)))
    reply = LoggedMessage(Message(role="assistant", content=text), tokens)
    return ApiCall([LoggedMessage(m) for m in history], reply, replace(facts, is_completion=True), where)


def whole_response(log: ChatLine) -> Response:
    """The response of a line, its chunks assembled."""
    given = log.response
    if isinstance(given, str):
        return assemble(events(given, _RESPONSE))
    if isinstance(given, list) or log.chunks is not None:
        chunks: list[Any] = (given if isinstance(given, list) else log.chunks) or []
        if not {Response}.issuperset(map(type, chunks)):
            texts = [one if one.startswith("data:") else f"data:{one}" for one in chunks if isinstance(one, str)]
            chunks = [one for one in chunks if isinstance(one, Response)] or events("\n".join(texts), _RESPONSE)
        return assemble(chunks)
    if given is None:
        return _bare_response(log)
    body = given.body or given
    return assemble([body]) if is_streamed(body) else body


def events(text: str, decoder: msgspec.json.Decoder[T]) -> list[T]:
    """What the lines of an event stream hold."""
    data = (line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:"))
    return [decode_line(event.encode(), decoder) for event in data if event not in ("", "[DONE]")]


def _bare_response(log: ChatLine) -> Response:
    return Response(id=_text(log.id), **{name: getattr(log, name) for name in _BARE})


def _unlisted(response: Response, choice: Choice, n_listed: int) -> int:
    """Drawn tokens of a reply that its logprobs do not list; 0 where the log does not say.

    A token that only ends the message may be counted and not listed; usage is that of all choices together.
    """
    drawn = response.usage.get("completion_tokens") if isinstance(response.usage, dict) else None
    if not isinstance(drawn, int) or not n_listed or len(response.choices or ()) != 1:
        return 0
    end = choice.finish_reason != "length"
    return drawn - n_listed if drawn > n_listed + end else 0


def _said(messages: Sequence[Message]) -> list[LoggedMessage]:
    """Messages with their tokens packed; one whose parts are calls and results becomes several."""
    said = list[LoggedMessage]()
    for message in messages:
        tokens = pack(message.logprobs) if message.role == "assistant" else NO_TOKENS
        first, more = _expanded(message)
        said.append(LoggedMessage(first, tokens))
        said += map(LoggedMessage, more)
    return said


def _expanded(message: Message) -> tuple[Message, Sequence[Message]]:
    """A message without logprobs, and those that its parts make after it; an assistant's comes first."""
    message.logprobs = None
    for call in message.tool_calls or ():
        if not call.id or not call.function.name:
            call.id, call.function.name = call.id or call.call_id or call.tool_call_id, call.function.name or call.name
    message.content, message.parts = message.parts if message.content is None else message.content, None
    if not isinstance(message.content, list):
        return message, ()
    said = expand(message)
    if not said or message.role == "assistant" != said[0].role:
        return Message(message.role), said
    return said[0], said[1:]


def _request(log: ChatLine) -> Request | None:
    return log.request and (log.request.body or log.request)


def _facts(log: ChatLine, response: Response | None, last: Choice | Message) -> Facts:
    if log.logprobs_mode is not None and log.logprobs_mode.endswith("logits"):
        raise DataError(
            f"field logprobs_mode: {log.logprobs_mode!r} reports logits; expected log-probabilities, so run the server "
            "with raw_logprobs or processed_logprobs"
        )
    request = _request(log)
    temperature = log.temperature if log.temperature is not None or request is None else request.temperature
    own_id = log.id if log.id is not None else log.custom_id
    return Facts(
        id=_text(own_id) or (response.id if response is not None else None) or None,
        group_id=_text(log.group_id),
        session=_session(log),
        vocab_size=log.vocab_size,
        model=log.model or (response and response.model) or (request and request.model) or None,
        sampling_temperature=temperature,
        top_logprobs=request.top_logprobs if request is not None else None,
        logprobs_mode=log.logprobs_mode,
        question=log.question,
        prediction=log.prediction,
        golden_answers=golden_answers(log.answer if log.golden_answers is None else log.golden_answers),
        outcome=outcome_of(_grade(log)),
        finish_reason=last.finish_reason,
        started_at=epoch_seconds(log.started_at),
        ended_at=epoch_seconds(log.started_at) + seconds(log.duration_s),
        metadata=_metadata(log, temperature, response),
    )


def _session(log: ChatLine) -> str | None:
    """Id that the API calls of one conversation share, beside or inside `metadata`."""
    request = _request(log)
    inside = [m for m in (log.metadata, request and request.metadata) if isinstance(m, dict)]
    for key in _SESSION_FIELDS:
        for value in (getattr(log, key), *(m.get(key) for m in inside)):
            if isinstance(value, str | int) and value != "":
                return str(value)
    return None


def _metadata(log: ChatLine, temperature: float | None, response: Response | None) -> dict[str, Scalar]:
    extra = scalars(log.metadata or {})
    if temperature is not None:
        extra["sampling_temperature"] = temperature
    if log.logprobs_mode is not None:
        extra["logprobs_mode"] = log.logprobs_mode
    n_choices = len(response.choices or []) if response is not None else 1
    tools = log.tools if (request := _request(log)) is None or request.tools is None else request.tools
    extra |= tool_kinds(tools)
    return extra | unfit_outcome(_grade(log)) | ({"n_choices": n_choices} if n_choices > 1 else {})


def _grade(log: ChatLine) -> Any:
    """The grade that a line states, beside or inside its metadata."""
    stated = [*(getattr(log, name) for name in GRADES), *((log.metadata or {}).get(name) for name in GRADES)]
    return next((value for value in stated if value is not None), None)


def _text(value: str | int | None) -> str | None:
    return None if value is None else str(value)


def _logged_chunk(log: ChatLine) -> LoggedChunk | None:
    """The chunk of a line, bare or in the envelope of its API call; None if the line holds none, or a whole stream."""
    given = log.response
    if given is None and log.chunks is None and log.choices is not None:
        bare = _bare_response(log)
        envelope = msgspec.structs.replace(log, id=None, **dict.fromkeys(_BARE))
        return LoggedChunk(bare, envelope) if is_streamed(bare) else None
    if not isinstance(given, Response) or log.chunks is not None:
        return None
    body, request = given.body or given, _request(log)
    texts = any(choice.text is not None for choice in body.choices or [])
    if is_streamed(body) or (texts and request is not None and request.stream is True):
        return LoggedChunk(body, msgspec.structs.replace(log, response=None))
    return None

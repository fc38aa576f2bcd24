"""Importer for Ollama's native chat (`/api/chat`): exchanges, bare responses and streams, as API calls of a chat.

Lost: entropies of calls, for which Ollama reports no log-probabilities; images. Mapping: docs/formats/ollama.md.
"""

from __future__ import annotations

from typing import Any

import msgspec

from deltah.errors import DataError
from deltah.traces.conversation import ApiCall, LoggedChunk, message_text
from deltah.traces.importers.openai_chat import read_call
from deltah.traces.importing import IMPORTERS, RecordContext, epoch_seconds, finite, holds
from deltah.traces.openai_schema import (
    ChatLine,
    Choice,
    Delta,
    DeltaToolCall,
    FunctionCall,
    LogprobsBlock,
    Message,
    Request,
    Response,
    TokenLogprob,
)


class OllamaMessage(Message):
    """A message in Ollama's words."""

    thinking: str | None = None
    tool_name: str | None = None


class Chunk(msgspec.Struct):
    """A response, or a piece of a streamed one."""

    message: OllamaMessage | None = None
    model: str | None = None
    created_at: Any = None
    done: bool = True
    done_reason: str | None = None
    logprobs: list[TokenLogprob] | None = None
    total_duration: Any = None
    """Nanoseconds."""
    eval_count: Any = None
    error: Any = None


class OllamaRequest(Request):
    """Body of the request."""

    messages: list[OllamaMessage] = []  # type: ignore[assignment]  # noqa: RUF012  # msgspec copies it
    options: Any = None


class Line(ChatLine):
    """One line: `request` with `response`, or the fields of a bare response."""

    request: OllamaRequest | None = None
    response: Chunk | list[Chunk] | None = None  # type: ignore[assignment]
    message: OllamaMessage | None = None
    created_at: Any = None
    done: bool = True
    done_reason: str | None = None
    logprobs: list[TokenLogprob] | None = None
    total_duration: Any = None
    eval_count: Any = None


@IMPORTERS.register(
    "ollama",
    meaning="Native chat of Ollama",
    fields=(("response", "done"),),
    sign=holds("response.done", "done"),
    schema=Line,
)
def read(line: Line, context: RecordContext) -> ApiCall | LoggedChunk:
    """Read one exchange, or a piece of one."""
    given = line.response or msgspec.convert(line, Chunk, from_attributes=True)
    chunks = given if isinstance(given, list) else [given]
    if not any(chunk.message is not None for chunk in chunks):
        raise DataError("field message: missing; expected a response of Ollama's /api/chat")
    if line.response is None:
        return LoggedChunk(_response(chunks[0]), _envelope(line, dict.fromkeys(("id", "model", "error"))))
    last = chunks[-1]
    took = (finite(last.total_duration) or 0.0) / 1e9
    stated = (
        {} if line.started_at is not None else {"started_at": epoch_seconds(last.created_at) - took, "duration_s": took}
    )
    return read_call(_envelope(line, {"response": [_response(chunk) for chunk in chunks], **stated}), context.where)


def _envelope(line: Line, changed: dict[str, Any]) -> ChatLine:
    """The line as one of an OpenAI-style log."""
    known = {name: getattr(line, name) for name in ChatLine.__struct_fields__} | {"request": _request(line.request)}
    return ChatLine(**known | changed)


def _request(request: OllamaRequest | None) -> Request | None:
    if request is None:
        return None
    temperature = request.options.get("temperature") if isinstance(request.options, dict) else None
    return msgspec.structs.replace(
        request,
        messages=[_message(message) for message in request.messages],
        temperature=finite(temperature) if request.temperature is None else request.temperature,
    )


def _message(message: OllamaMessage) -> OllamaMessage:
    return msgspec.structs.replace(
        message,
        name=message.name or message.tool_name,
        reasoning_content=message.reasoning_content or message.thinking,
    )


def _response(chunk: Chunk) -> Response:
    """One chunk of a stream as an OpenAI-compatible server sends it; a whole response is a stream of one."""
    said = chunk.message or OllamaMessage(role="assistant")
    functions = [call.function or FunctionCall() for call in said.tool_calls or ()]
    calls = [
        DeltaToolCall(index=i, function=FunctionCall(f.name, msgspec.json.encode(f.arguments).decode()))
        for i, f in enumerate(functions)
    ]
    return Response(
        choices=[
            Choice(
                delta=Delta(
                    content=message_text(said.content), reasoning_content=said.thinking, tool_calls=calls or None
                ),
                logprobs=LogprobsBlock(content=chunk.logprobs) if chunk.logprobs else None,
                finish_reason=(chunk.done_reason or "stop") if chunk.done else None,
            )
        ],
        model=chunk.model,
        error=chunk.error,
        usage={"completion_tokens": chunk.eval_count} if chunk.done else None,
    )

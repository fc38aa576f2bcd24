"""Importer for OpenAI Responses: one exchange, or its bare response, as an API call of a chat.

Lost: images and files, summaries of hidden reasoning have no tokens, items of other types (lists of tools, approvals,
compactions). Mapping: docs/formats/responses.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec

from deltah.errors import DataError
from deltah.traces.conversation import ApiCall, LoggedMessage
from deltah.traces.importers.openai_chat import read_call
from deltah.traces.importing import IMPORTERS, RecordContext, decode_line, holds
from deltah.traces.openai_schema import ChatLine, Choice, LogprobsBlock, Message, Request, Response, TokenLogprob
from deltah.traces.parts import first_of, objects, to_messages

_ARGUMENTS: Final = ("arguments", "input", "action", "code", "queries", "operation", "prompt")
_RESULTS: Final = ("output", "outputs", "results", "result", "error")
_ENDS: Final = ("response.completed", "response.incomplete", "response.failed")


class Params(Request):
    """Body of the request."""

    input: Any = None
    instructions: Any = None
    previous_response_id: str | None = None
    conversation: Any = None
    body: Params | None = None


class Body(Response):
    """Body of the response."""

    output: list[dict[str, Any]] | None = None
    status: str | None = None
    incomplete_details: Any = None
    temperature: float | None = None
    conversation: Any = None
    body: Body | None = None


class Event(msgspec.Struct):
    """One event of a stream."""

    type: str = ""
    response: Body | None = None
    item: dict[str, Any] | None = None


class Line(ChatLine):
    """One line: `request` with `response`, or the fields of a bare response."""

    request: Params | None = None
    response: Body | list[Event] | str | None = None  # type: ignore[assignment]
    type: str | None = None
    input: Any = None
    output: list[dict[str, Any]] | None = None
    status: str | None = None
    incomplete_details: Any = None
    conversation: Any = None


_EVENT: Final = msgspec.json.Decoder(Event)
_EVENT_LINE: Final = re.compile(rb'\s*\{[^{}[\]]*"type"\s*:\s*"response\.')
_HOLDS: Final = holds(
    "response.output", "response.body.output", "response.response", "output.type", "incomplete_details"
)


@IMPORTERS.register(
    "responses",
    meaning="OpenAI Responses, with log-probabilities where they were asked for",
    fields=(("response", "output", "incomplete_details", "sequence_number"),),
    sign=lambda data: _EVENT_LINE.match(data) or _HOLDS(data),
    schema=Line,
)
def read(line: Line, context: RecordContext) -> ApiCall | tuple[()]:
    """Read one exchange; of a stream whose events are lines, the last one, which holds all."""
    if line.type is not None and line.type.startswith("response.") and line.type not in _ENDS:
        return ()
    asked = (line.request and (line.request.body or line.request)) or Params(input=line.input)
    answered = _whole(line)
    if answered.error is not None or answered.status == "failed":
        raise DataError("field response: it holds an error; there is no message of the model to measure")
    said = messages_of(answered.output)
    last = max((i for i, message in enumerate(said) if message.role == "assistant"), default=None)
    if last is None:
        raise DataError(
            "field response.output: no message, reasoning or call of the model; there is nothing to measure"
        )
    temperature = answered.temperature if asked.temperature is None else asked.temperature
    messages = [*history_of(asked), *said[:last]]
    request = msgspec.structs.replace(asked, messages=messages, temperature=temperature, body=None)
    response = Response(
        id=answered.id,
        choices=[Choice(message=said[last], finish_reason=_finish_reason(answered))],
        model=answered.model,
        error=answered.error,
        usage=_usage(answered.usage),
    )
    kept = _id(answered.conversation) or _id(asked.conversation)
    session = line.conversation_id or kept
    call = read_call(
        msgspec.structs.replace(line, request=request, response=response, conversation_id=session), context.where
    )
    facts = replace(
        call.facts,
        continues=asked.previous_response_id or kept,
        continued_as=tuple(filter(None, (answered.id, kept))),
    )
    return replace(call, facts=facts, after=tuple(map(LoggedMessage, said[last + 1 :])))


def messages_of(items: Any) -> list[Message]:
    """Messages that the items of an input or an output stand for; a turn of the model is one message."""
    if isinstance(items, str):
        return to_messages(items)
    return [_with_tokens(message) for message in to_messages([*_plain(items)], "assistant")]


def _plain(items: Any) -> Iterator[Mapping[str, Any]]:
    """Items with every call and every result as those of a function; a call that the server answered has both."""
    served = list[Mapping[str, Any]]()
    for item in objects(items):
        kind = str(item.get("type") or "message")
        id = item.get("call_id") or item.get("id")
        if served and not kind.endswith("_call"):
            yield from served
            served = []
        if kind.endswith("_call"):
            name, arguments = item.get("name") or kind.removesuffix("_call"), first_of(item, _ARGUMENTS)
            yield {"type": "function_call", "id": id, "name": name, "arguments": arguments}
            if (found := first_of(item, _RESULTS)) is not None:
                failed = item.get("error") is not None
                served.append({"type": "function_call_output", "call_id": id, "output": found, "is_error": failed})
        elif kind.endswith("_output"):
            yield {"type": "function_call_output", "call_id": id, "output": item.get("output")}
        elif kind in ("message", "reasoning"):
            yield item
    yield from served


def _with_tokens(message: Message) -> Message:
    """A message of the model with the log-probabilities that stand in the parts of its text."""
    parts = objects(message.content)
    if message.role != "assistant" or not parts:
        return message
    blocks = msgspec.convert([part.get("logprobs") or () for part in parts], list[list[TokenLogprob]])
    tokens = [token for block in blocks for token in block]
    text = "".join(str(part.get("text") or part.get("refusal") or "") for part in parts)
    return msgspec.structs.replace(message, content=text, logprobs=LogprobsBlock(content=tokens) if tokens else None)


def history_of(asked: Params) -> Iterator[Message]:
    """Messages of a request, its instructions first."""
    for message in messages_of(asked.instructions):
        yield msgspec.structs.replace(message, role="system")
    yield from messages_of(asked.input)


def _whole(line: Line) -> Body:
    """The response of a line; of a stream the one of its last event."""
    given = line.response
    if isinstance(given, str):
        lines = (text.removeprefix("data:").strip() for text in given.splitlines() if text.startswith("data:"))
        given = [decode_line(text.encode(), _EVENT) for text in lines if text not in ("", "[DONE]")]
    if isinstance(given, list):
        last = next((event.response for event in reversed(given) if event.type in _ENDS and event.response), None)
        items = [event.item for event in given if event.type == "response.output_item.done" and event.item is not None]
        begun = next((event.response for event in given if event.response is not None), None) or Body()
        return last if last is not None and last.output else msgspec.structs.replace(last or begun, output=items)
    if given is not None:
        return given.body or given
    return msgspec.convert(line, Body, from_attributes=True)


def _finish_reason(body: Body) -> str | None:
    reason = body.incomplete_details.get("reason") if isinstance(body.incomplete_details, dict) else None
    return "length" if reason == "max_output_tokens" else reason or body.status


def _usage(usage: Any) -> Any:
    """Usage in the words of the chat API."""
    return {"completion_tokens": usage.get("output_tokens")} if isinstance(usage, dict) else None


def _id(value: Any) -> str | None:
    found = value.get("id") if isinstance(value, dict) else value
    return found if isinstance(found, str) and found else None

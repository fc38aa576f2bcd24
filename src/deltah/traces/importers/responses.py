"""Importer for OpenAI Responses: one exchange, or its bare response, as an API call of a chat.

Lost: images and files, summaries of hidden reasoning have no tokens, items of other types (lists of tools, approvals,
compactions). Mapping: docs/formats/responses.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from deltah.errors import DataError
from deltah.traces.conversation import ApiCall, message_text
from deltah.traces.importers.openai_chat import read_call
from deltah.traces.importing import IMPORTERS, RecordContext, decode_line, holds
from deltah.traces.openai_schema import (
    ChatLine,
    Choice,
    FunctionCall,
    LogprobsBlock,
    Message,
    MessageToolCall,
    Request,
    Response,
    TokenLogprob,
)

_ARGUMENTS: Final = ("arguments", "input", "action", "code", "queries", "operation", "prompt")
_RESULTS: Final = ("output", "outputs", "results", "result", "error")
_ENDS: Final = ("response.completed", "response.incomplete", "response.failed")


class Part(msgspec.Struct):
    """A piece of a message or of reasoning."""

    type: str = ""
    text: str | None = None
    refusal: str | None = None
    logprobs: list[TokenLogprob] | None = None


class Item(msgspec.Struct):
    """One item of an input or an output; calls of the server's own tools carry their results."""

    type: str = "message"
    id: str | None = None
    role: str | None = None
    content: str | list[Part] | None = None
    summary: list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: Any = None
    input: Any = None
    action: Any = None
    code: Any = None
    queries: Any = None
    operation: Any = None
    prompt: Any = None
    output: Any = None
    outputs: Any = None
    results: Any = None
    result: Any = None
    error: Any = None


class Params(Request):
    """Body of the request."""

    input: str | list[Item] | None = None
    instructions: str | list[Item] | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    body: Params | None = None


class Body(Response):
    """Body of the response."""

    output: list[Item] | None = None
    status: str | None = None
    incomplete_details: Any = None
    temperature: float | None = None
    conversation: Any = None
    body: Body | None = None


class Event(msgspec.Struct):
    """One event of a stream."""

    type: str = ""
    response: Body | None = None
    item: Item | None = None
    message: Any = None


class Line(ChatLine):
    """One line: `request` with `response`, or the fields of a bare response."""

    request: Params | None = None
    response: Body | list[Event] | str | None = None  # type: ignore[assignment]
    input: str | list[Item] | None = None
    output: list[Item] | None = None
    status: str | None = None
    incomplete_details: Any = None
    conversation: Any = None


_EVENT: Final = msgspec.json.Decoder(Event)


@IMPORTERS.register(
    "responses",
    meaning="OpenAI Responses, with log-probabilities where they were asked for",
    fields=(("response", "output", "incomplete_details"),),
    sign=holds("response.output", "response.body.output", "response.response", "output.type", "incomplete_details"),
    schema=Line,
)
def read(line: Line, context: RecordContext) -> ApiCall:
    """Read one exchange."""
    asked = (line.request and (line.request.body or line.request)) or Params(input=line.input)
    answered = _whole(line)
    failed = answered.error is not None or answered.status == "failed"
    if answered.output is None and not failed:
        raise DataError("field response.output: missing; expected the items of a Responses API's response")
    said = [*messages_of(answered.output)]
    if failed:
        raise DataError("field response: it holds an error; there is no message of the model to measure")
    if not said or said[-1].role != "assistant":
        raise DataError(
            "field response.output: no message, reasoning or call of the model; there is nothing to measure"
        )
    request = Request(
        messages=[*history_of(asked), *said[:-1]],
        model=asked.model,
        temperature=answered.temperature if asked.temperature is None else asked.temperature,
        top_logprobs=asked.top_logprobs,
        metadata=asked.metadata,
    )
    response = Response(
        id=answered.id,
        choices=[Choice(message=said[-1], finish_reason=_finish_reason(answered))],
        model=answered.model,
        error=answered.error,
        usage=_usage(answered.usage),
    )
    session = line.conversation_id or _id(answered.conversation) or _id(asked.conversation)
    chat = msgspec.structs.replace(line, request=request, response=response, conversation_id=session)
    return read_call(chat, context.where)


def messages_of(items: str | Iterable[Item] | None) -> Iterator[Message]:
    """Messages that items of the Responses API stand for; items of one turn of the model become one message."""
    if items is None or isinstance(items, str):
        yield from [Message(role="user", content=items)] if items else []
        return
    turn, served = list[Item](), list[Message]()
    for item in items:
        written = item.type == "reasoning" or item.role == "assistant" or item.type.endswith("_call")
        if turn and (not written or (served and not item.type.endswith("_call"))):
            yield _turn(turn)
            yield from served
            turn, served = [], []
        if written:
            turn.append(item)
            served += _served(item)
        elif item.type.endswith("_output"):
            yield Message(role="tool", tool_call_id=item.call_id, content=_plain(item.output))
        elif item.type == "message":
            yield Message(role=item.role or "user", content=_text(item.content))
    if turn:
        yield _turn(turn)
        yield from served


def _turn(items: Sequence[Item]) -> Message:
    """One message of the model."""
    said = [item.content for item in items if item.type == "message"]
    parts = [part for content in said if isinstance(content, list) for part in content]
    tokens = [token for part in parts for token in part.logprobs or ()]
    thoughts = [_text(item.content) or _text(item.summary) for item in items if item.type == "reasoning"]
    calls = [item for item in items if item.type.endswith("_call")]
    return Message(
        role="assistant",
        content="".join(map(_text, said)),
        reasoning_content="\n".join(filter(None, thoughts)) or None,
        tool_calls=[MessageToolCall(_call_id(c), FunctionCall(_name(c), _plain(_first(c, _ARGUMENTS)))) for c in calls]
        or None,
        logprobs=LogprobsBlock(content=tokens) if tokens else None,
    )


def _served(item: Item) -> Iterator[Message]:
    """The result of a call that the server answered itself."""
    found = _first(item, _RESULTS) if item.type.endswith("_call") else None
    if found is not None:
        text = _plain(found)
        failed = found is item.error and isinstance(text, str)
        yield Message(role="tool", tool_call_id=_call_id(item), content=f"error: {text}" if failed else text)


def _first(item: Item, names: Sequence[str]) -> Any:
    return next((value for name in names if (value := getattr(item, name)) is not None), None)


def _name(item: Item) -> str:
    """A function's own name; of a built-in tool its type."""
    return item.name or item.type.removesuffix("_call")


def _call_id(item: Item) -> str | None:
    return item.call_id or item.id


def _text(content: str | Sequence[Part] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(_part_text(part) for part in content)


def _part_text(part: Part) -> str:
    text = part.refusal if part.text is None else part.text
    return f"[{part.type}]" if text is None else text


def _plain(value: Any) -> Any:
    """Text of a result in parts; anything else as it is."""
    typed = isinstance(value, list) and value and all(isinstance(v, dict) and "type" in v for v in value)
    return message_text(value) if typed else value


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

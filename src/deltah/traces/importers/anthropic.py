"""Importer for logs of Anthropic's Messages API; the mapping is in docs/formats/anthropic.md.

Lost: token counts, signatures, redacted thoughts, citations; of a picture in a result, all but a digest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from deltah.core.types import Trajectory
from deltah.errors import DataError
from deltah.traces.conversation import ApiCall, LoggedChunk
from deltah.traces.importers import openai_chat
from deltah.traces.importing import IMPORTERS, RecordContext, decode_line
from deltah.traces.openai_schema import ChatLine, Choice, Message, Response, to_schema

_SIGN: Final = re.compile(
    # A response in OpenAI's shape has messages with parts of any kind.
    rb'(?!.*?"choices"\s*:\s*\[\s*\{\s*"(?:index|delta|message|finish_reason|logprobs)").*?(?:'
    rb'"type"\s*:\s*"(?:(?:server_|mcp_)?tool_use|(?:\w+_)?tool_result|thinking|redacted_thinking|message_start)"'
    rb'|"stop_reason"\s*:\s*"(?:end_turn|tool_use|max_tokens|stop_sequence|pause_turn|refusal)"'
    rb'|\\"type\\"\s*:\s*\\"message_start\\")',
    re.DOTALL,
)
_ANY: Final = msgspec.json.Decoder(Any)


class Delta(msgspec.Struct, frozen=True):
    """What an event adds to a block, or to the message."""

    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class Event(msgspec.Struct):
    """One event of a stream."""

    type: str
    index: int = 0
    message: dict[str, Any] = {}
    content_block: dict[str, Any] = {}
    delta: Delta = Delta()


@IMPORTERS.register(
    "anthropic",
    meaning="Log of Anthropic's Messages API",
    fields=(("messages", "request", "response", "result", "content"),),
    sign=_SIGN.match,
)
def read(record: dict[str, Any], context: RecordContext) -> Trajectory | ApiCall | LoggedChunk:
    """Read one line: a conversation, or an API call of one."""
    given = next((record[name] for name in ("response", "result") if record.get(name) is not None), None)
    if given is None and record.get("type") == "message":
        given, record = record, {}
    line: dict[str, Any] = {name: value for name, value in record.items() if name not in ("response", "result")}
    if isinstance(line.get("request"), dict):
        body = line["request"].get("body")
        line["request"] = _with_system(body if isinstance(body, dict) else line["request"])
    log = to_schema(_with_system(line), ChatLine)
    if given is not None:
        log.response = _response(given)
    return openai_chat.read(log, context)


def _with_system(body: dict[str, Any]) -> dict[str, Any]:
    """A request whose system prompt is its first message."""
    if not body.get("system") or not isinstance(body.get("messages"), list):
        return body
    return {**body, "messages": [{"role": "system", "content": body["system"]}, *body["messages"]]}


def _response(given: Any) -> Response:
    """A response in OpenAI's shape."""
    if isinstance(given, str):
        given = [decode_line(line[5:].encode(), _ANY) for line in given.splitlines() if line.startswith("data:")]
    whole = _assembled(msgspec.convert(given, list[Event])) if isinstance(given, list) else given
    for name in ("body", "message"):
        whole = whole[name] if isinstance(whole, dict) and isinstance(whole.get(name), dict) else whole
    kind = whole.get("type") if isinstance(whole, dict) else None
    if kind in ("error", "errored", "canceled", "expired"):
        raise DataError("field response: it holds an error; there is no assistant message to measure")
    if kind != "message" or not isinstance(whole.get("content"), list | str):
        raise DataError("field response: expected a message of Anthropic's, with 'type' and 'content', or its events")
    cut = str(whole.get("stop_reason")) in ("max_tokens", "model_context_window_exceeded")
    choice = Choice(message=Message("assistant", content=whole["content"]), finish_reason="length" if cut else None)
    return msgspec.convert({"id": whole.get("id"), "model": whole.get("model"), "choices": [choice]}, Response)


def _assembled(events: Sequence[Event]) -> dict[str, Any]:
    """The message that streamed events tell."""
    message, blocks, pieces = dict[str, Any](), dict[int, dict[str, Any]](), dict[int, str]()
    for event in events:
        if event.type == "error":
            raise DataError("field response: the stream ends in an error; there is no whole assistant message")
        message |= event.message
        delta, block = event.delta, blocks.setdefault(event.index, {})
        block |= event.content_block
        if delta.stop_reason is not None:
            message["stop_reason"] = delta.stop_reason
        for name, piece in (("text", delta.text), ("thinking", delta.thinking)):
            if piece:
                block["type"], block[name] = name, f"{block.get(name) or ''}{piece}"
        pieces[event.index] = pieces.get(event.index, "") + delta.partial_json
    parts = [blocks[index] | ({"input": pieces[index]} if pieces[index] else {}) for index in sorted(blocks)]
    return message | {"content": [part for part in parts if part]}

"""Importer for logs of Anthropic's Messages API; the mapping is in docs/formats/anthropic.md.

Lost: token counts, signatures, redacted thoughts, citations; of a picture in a result, all but a digest.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from deltah.core.types import Trajectory
from deltah.errors import DataError
from deltah.traces.conversation import ApiCall, LoggedChunk
from deltah.traces.importers import openai_chat
from deltah.traces.importing import IMPORTERS, RecordContext, decode_line, finite
from deltah.traces.openai_schema import ChatLine, Response, to_schema
from deltah.traces.parts import first_of, mapping, to_response

_SIGN: Final = re.compile(
    # A response in OpenAI's shape has messages with parts of any kind.
    rb'(?!.*?"choices"\s*:\s*\[\s*\{\s*"(?:index|delta|message|finish_reason|logprobs)").*?(?:'
    rb'"type"\s*:\s*"(?:(?:server_|mcp_)?tool_use|(?:\w+_)?tool_result|thinking|redacted_thinking|message_start)"'
    rb'|"stop_reason"\s*:\s*"(?:end_turn|tool_use|max_tokens|stop_sequence|pause_turn|refusal)"'
    rb'|\\"type\\"\s*:\s*\\"message_start\\")',
    re.DOTALL,
)
_ANY: Final = msgspec.json.Decoder(Any)


@IMPORTERS.register(
    "anthropic",
    meaning="Log of Anthropic's Messages API",
    fields=(("messages", "request", "response", "result", "content"),),
    sign=_SIGN.match,
)
def read(record: dict[str, Any], context: RecordContext) -> Trajectory | ApiCall | LoggedChunk:
    """Read one line: a conversation, or an API call of one."""
    given = first_of(record, ("response", "result"))
    if given is None and record.get("type") == "message":
        given, record = record, {}
    line = {name: value for name, value in record.items() if name not in ("response", "result")}
    if isinstance(line.get("request"), dict):
        line["request"] = _with_system(mapping(line["request"].get("body")) or line["request"])
    log = to_schema(_with_system(line), ChatLine)
    if given is not None:
        log.response = _response(given)
    return openai_chat.read(log, context)


def _with_system(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """A request whose system prompt is its first message."""
    if not body.get("system") or not isinstance(body.get("messages"), list):
        return body
    return {**body, "messages": [{"role": "system", "content": body["system"]}, *body["messages"]]}


def _response(given: Any) -> Response:
    """A response in OpenAI's shape."""
    if isinstance(given, str):
        given = [decode_line(line[5:].encode(), _ANY) for line in given.splitlines() if line.startswith("data:")]
    whole = _assembled(given) if isinstance(given, list) else mapping(given)
    for name in ("body", "message"):
        whole = mapping(whole.get(name)) or whole
    if whole.get("type") in ("error", "errored", "canceled", "expired"):
        raise DataError("field response: it holds an error; there is no assistant message to measure")
    if whole.get("type") != "message" or not isinstance(whole.get("content"), list | str):
        raise DataError("field response: expected a message of Anthropic's, with 'type' and 'content', or its events")
    return to_response({**whole, "role": "assistant"})


def _assembled(events: list[Any]) -> Mapping[str, Any]:
    """The message that streamed events tell."""
    kinds = [mapping(event).get("type") for event in events]
    if "error" in kinds or not all(isinstance(kind, str) for kind in kinds):
        fault = "ends in an error" if "error" in kinds else "holds something that is no event"
        raise DataError(f"field response: the stream {fault}; there is no whole assistant message")
    message, blocks = dict[str, Any](), defaultdict[float, dict[str, Any]](dict)
    for event in events:
        message |= mapping(event.get("message"))
        block, delta = blocks[finite(event.get("index")) or 0], mapping(event.get("delta"))
        block |= mapping(event.get("content_block"))
        message |= {"stop_reason": delta["stop_reason"]} if delta.get("stop_reason") else {}
        for name, kind in (("text", "text"), ("thinking", "thinking"), ("partial_json", "tool_use")):
            if delta.get(name) is not None:
                block |= {"type": block.get("type", kind), name: f"{block.get(name) or ''}{delta[name]}"}
    parts = [blocks[index] for index in sorted(blocks) if blocks[index]]
    return message | {"content": [p | {"input": p["partial_json"]} if p.get("partial_json") else p for p in parts]}

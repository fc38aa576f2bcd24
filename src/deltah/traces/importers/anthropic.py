"""Importer for logs of Anthropic's Messages API; the mapping is in docs/formats/anthropic.md.

Lost: token counts, signatures, redacted thoughts, citations; of a picture in a result, all but a digest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from deltah.core.types import Trajectory
from deltah.errors import DataError
from deltah.traces.conversation import ApiCall, LoggedChunk
from deltah.traces.importers import openai_chat
from deltah.traces.importing import IMPORTERS, RecordContext, decode_line
from deltah.traces.openai_schema import ChatLine, Choice, Message, Response

_SIGN: Final = re.compile(
    rb'"type"\s*:\s*"(?:(?:server_|mcp_)?tool_use|(?:\w+_)?tool_result|thinking|redacted_thinking|message_start)"'
    rb'|"stop_reason"\s*:\s*"(?:end_turn|tool_use|max_tokens|stop_sequence|pause_turn|refusal)"'
    rb'|\\"type\\"\s*:\s*\\"message_start\\"'
)
_ANY: Final = msgspec.json.Decoder(Any)
_DELTAS: Final = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}
"""Field of each kind of delta that continues a block."""


@IMPORTERS.register(
    "anthropic",
    meaning="Log of Anthropic's Messages API",
    fields=(("messages", "request", "response", "result", "content"),),
    sign=_SIGN.search,
)
def read(record: dict[str, Any], context: RecordContext) -> Trajectory | ApiCall | LoggedChunk:
    """Read one line: a conversation, or an API call of one."""
    given = next((record[name] for name in ("response", "result") if record.get(name) is not None), None)
    if given is None and record.get("type") == "message":
        given, record = record, {}
    line: dict[str, Any] = {name: value for name, value in record.items() if name not in ("response", "result")}
    if isinstance(line.get("request"), dict):
        line["request"] = _with_system(line["request"].get("body") or line["request"])
    log = msgspec.convert(_with_system(line), ChatLine)
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
    whole: Any = _events(given) if isinstance(given, str) else given
    whole = _assembled(whole) if isinstance(whole, list) else whole
    whole = whole.get("body") or (whole.get("message") if "role" not in whole else None) or whole
    if whole.get("type") in ("error", "errored", "canceled", "expired"):
        raise DataError("field response: it holds an error; there is no assistant message to measure")
    if whole.get("type") != "message" or not isinstance(whole.get("content"), list | str):
        raise DataError("field response: expected a message of Anthropic's, with 'type' and 'content', or its events")
    cut = whole.get("stop_reason") in ("max_tokens", "model_context_window_exceeded")
    choice = Choice(message=Message("assistant", content=whole["content"]), finish_reason="length" if cut else None)
    return Response(id=whole.get("id"), model=whole.get("model"), choices=[choice])


def _events(text: str) -> Any:
    """What a text holds: the events of a stream, or a message."""
    events = [line.removeprefix("data:") for line in text.splitlines() if line.startswith("data:")]
    whole: Any = [decode_line(event.encode(), _ANY) for event in events]
    return whole or decode_line(text.encode(), _ANY)


def _assembled(events: Sequence[Any]) -> dict[str, Any]:
    """The message that streamed events tell."""
    message, blocks = dict[str, Any](), dict[int, dict[str, Any]]()
    for event in filter(lambda event: isinstance(event, Mapping), events):
        kind, delta = event.get("type"), event.get("delta") or {}
        if kind == "error":
            raise DataError("field response: the stream ends in an error; there is no whole assistant message")
        if kind == "message_start":
            message = dict(event["message"])
        elif kind == "message_delta":
            message |= delta
        elif kind == "content_block_start":
            blocks[event["index"]] = dict(event["content_block"])
        elif kind == "content_block_delta" and (name := _DELTAS.get(str(delta.get("type")))) is not None:
            block = blocks.setdefault(event["index"], {"type": name})
            block[name] = (block.get(name) or "") + (delta.get(name) or "")
    parts = [blocks[index] for index in sorted(blocks)]
    return message | {"content": [_input(part) for part in parts]}


def _input(part: dict[str, Any]) -> dict[str, Any]:
    """A part with the input that was streamed as pieces of JSON."""
    return part if not part.get("partial_json") else part | {"input": part["partial_json"]}

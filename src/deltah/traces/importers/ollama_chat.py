"""Importer for Ollama's native chat (`/api/chat`): exchanges, bare responses and streams, as API calls of a chat.

Lost: entropies of calls, for which Ollama reports no log-probabilities; images. Mapping: docs/formats/ollama.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from deltah.errors import DataError
from deltah.traces.importers.openai_chat import read as read_chat
from deltah.traces.importing import IMPORTERS, Imported, RecordContext, epoch_seconds, finite, holds, inside
from deltah.traces.openai_schema import ChatLine
from deltah.traces.parts import objects


@IMPORTERS.register(
    "ollama", meaning="Native chat of Ollama", fields=(("response", "done"),), sign=holds("response.done", "done")
)
def read(record: dict[str, Any], context: RecordContext) -> Imported:
    """Read one exchange, or a piece of one, as the line that an OpenAI-compatible server's log would hold."""
    given = record.get("response", record)
    chunks = objects(given if isinstance(given, list) else [given])
    if not any(isinstance(chunk.get("message"), Mapping) for chunk in chunks):
        raise DataError("field message: missing; expected a response of Ollama's /api/chat")
    if "response" not in record:
        return read_chat(msgspec.convert(record | {"response": _chunk(record)}, ChatLine), context)
    line = record | {"response": [*map(_chunk, chunks)]}
    if isinstance(request := record.get("request"), dict):
        messages = [
            {**message, "name": message.get("tool_name"), "reasoning_content": message.get("thinking")}
            for message in objects(request.get("messages"))
        ]
        temperature = finite(inside(request, "options", "temperature"))
        line["request"] = {"temperature": temperature} | request | {"messages": messages}
    if record.get("started_at") is None:
        took = (finite(chunks[-1].get("total_duration")) or 0.0) / 1e9
        line |= {"started_at": epoch_seconds(chunks[-1].get("created_at")) - took, "duration_s": took}
    return read_chat(msgspec.convert(line, ChatLine), context)


def _chunk(chunk: Mapping[str, Any]) -> dict[str, Any]:
    """One chunk of a stream as an OpenAI-compatible server sends it; a whole response is a stream of one."""
    said = chunk["message"] if isinstance(chunk.get("message"), Mapping) else {}
    functions = [call.get("function") for call in objects(said.get("tool_calls"))]
    calls = [
        {"index": i, "function": {**f, "arguments": msgspec.json.encode(f.get("arguments")).decode()}}
        for i, f in enumerate(objects(functions))
    ]
    delta = {"content": said.get("content"), "reasoning_content": said.get("thinking"), "tool_calls": calls or None}
    ends = chunk.get("done", True) is not False
    choice = {
        "delta": delta,
        "logprobs": {"content": chunk.get("logprobs")},
        "finish_reason": (chunk.get("done_reason") or "stop") if ends else None,
    }
    usage = {"completion_tokens": chunk.get("eval_count")} if ends else None
    return {"choices": [choice], "model": chunk.get("model"), "error": chunk.get("error"), "usage": usage}

"""Builders of OpenAI-style log lines for the tests."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deltah.core.types import Trajectory
from deltah.traces.conversation import ApiCall, to_trajectory
from deltah.traces.files import Line, Position, inspect_samples, opened
from deltah.traces.importing import IMPORTERS, RecordContext, import_record


def token(
    text: str, logprobs: Sequence[float] | None = (0.5, 0.25, 0.25), drawn: int = 0, **extra: Any
) -> dict[str, Any]:
    """One entry of a logprobs block from probabilities; None leaves `top_logprobs` out."""
    if logprobs is None:
        return {"token": text, "logprob": -0.5, "bytes": list(text.encode())} | extra
    values = [math.log(p) if p else -9999.0 for p in logprobs]
    top = [{"token": f"alt{i}", "logprob": value, "bytes": None} for i, value in enumerate(values)]
    top[drawn]["token"] = text
    return {"token": text, "logprob": values[drawn], "bytes": list(text.encode()), "top_logprobs": top} | extra


def assistant(tokens: Sequence[dict[str, Any]] | None, **fields: Any) -> dict[str, Any]:
    """One assistant message."""
    block = {} if tokens is None else {"logprobs": {"content": list(tokens)}}
    return {"role": "assistant", "content": None} | block | fields


def call(name: str = "search", arguments: Any = '{"query": "x"}', id: str | None = "c1") -> dict[str, Any]:
    """One entry of `tool_calls`."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(text: str, id: str | None = "c1") -> dict[str, Any]:
    """One tool message."""
    return {"role": "tool", "content": text} | ({} if id is None else {"tool_call_id": id})


def user(text: str = "Where?") -> dict[str, Any]:
    """One user message."""
    return {"role": "user", "content": text}


def line(messages: Sequence[dict[str, Any]], **fields: Any) -> bytes:
    """One log line."""
    return json.dumps({"messages": list(messages)} | fields).encode()


def import_as(format: str, data: bytes, *, file: str = "d", number: int = 1, vocab_size: int | None = None) -> Any:
    """What the importer of a format makes of one record that stands there."""
    context = RecordContext(where=Position(file, number), vocab_size=vocab_size)
    return import_record(IMPORTERS[format], data, context)


def read_as(format: str, data: bytes, **options: Any) -> Trajectory:
    """One record by itself."""
    found = import_as(format, data, **options)
    assert isinstance(found, Trajectory)
    return found


def decode(data: bytes, *, default_id: str = "d", vocab_size: int | None = None) -> Trajectory:
    """One line of a chat log by itself."""
    found = import_as("openai", data, file=default_id, vocab_size=vocab_size)
    if isinstance(found, ApiCall):
        found = to_trajectory(found.alone(), vocab_size)
    assert isinstance(found, Trajectory)
    return replace(found, id=default_id) if found.id == f"{default_id}:1" else found


def eval_samples(path: Path) -> Iterator[Line]:
    """Samples of a log of Inspect."""
    with opened(str(path)) as raw:
        yield from inspect_samples(raw)

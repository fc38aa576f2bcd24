"""Streamed responses put together: the chunks of one completion become the response that was not streamed.

Pieces of content, reasoning and call arguments are joined in order, logprobs appended, the last finish reason kept; of
several choices only the first (index 0) is assembled, as the importer reads no other. Chunks come as a list, as the
text of an event stream (`data: {...}` lines), or as single log lines that share an id (`ChunkBuffer`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from deltah.errors import DataError
from deltah.traces.chatlog import (
    Choice,
    Delta,
    DeltaToolCall,
    FunctionCall,
    LogprobsBlock,
    Message,
    MessageToolCall,
    Response,
    TokenLogprob,
)
from deltah.traces.decode import decode_line

_CHUNK = msgspec.json.Decoder(Response)
_DONE = "[DONE]"


def assemble(chunks: Sequence[Response]) -> Response:
    """Join the chunks of one completion.

    Raises:
        DataError: if a chunk reports an error, or none carries a choice.
    """
    failed = next((chunk for chunk in chunks if chunk.error is not None), None)
    if failed is not None:
        raise DataError("field response: the stream ends in an error; there is no whole assistant message to measure")
    pieces = [c for chunk in chunks for c in chunk.choices or [] if c.index == 0]
    if not pieces:
        raise DataError("field response: no chunk carries a choice; there is no assistant message to measure")
    n_choices = 1 + max(c.index for chunk in chunks for c in chunk.choices or [])
    finish = next((c.finish_reason for c in reversed(pieces) if c.finish_reason), None)
    tokens = [token for choice in pieces for token in _tokens(choice)]
    whole = Choice(
        message=_message([c.delta for c in pieces if c.delta is not None]),
        logprobs=LogprobsBlock(content=tokens) if tokens else None,
        finish_reason=finish,
    )
    first = chunks[0]
    others = [Choice(index=i) for i in range(1, n_choices)]
    # Servers that report usage in every chunk count up.
    usage = next((chunk.usage for chunk in reversed(chunks) if chunk.usage is not None), None)
    model = next((c.model for c in chunks if c.model), None)
    return Response(id=first.id, choices=[whole, *others], model=model, usage=usage)


def parse_event_stream(text: str) -> list[Response]:
    """Chunks of a raw event stream.

    Raises:
        DataError: if an event's data is not JSON.
    """
    events = (line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:"))
    return [decode_line(event.encode(), _CHUNK) for event in events if event and event != _DONE]


class ChunkBuffer:
    """Chunks that a log holds one a line, gathered by their completion's id until its last."""

    def __init__(self) -> None:
        """Start with no stream open."""
        self._open: dict[str, list[Response]] = {}

    def add(self, chunk: Response) -> Response | None:
        """Take a chunk; return the whole response if it was the last.

        What follows the last chunk is dropped: a usage report, or the ends of other choices than the first.
        """
        key = chunk.id or ""
        of_the_first = any(choice.index == 0 for choice in chunk.choices or [])
        if not of_the_first and chunk.error is None and key not in self._open:
            return None
        self._open.setdefault(key, []).append(chunk)
        if chunk.error is None and not any(c.finish_reason and c.index == 0 for c in chunk.choices or []):
            return None
        return assemble(self._open.pop(key))

    def finish(self) -> Iterable[list[Response]]:
        """Streams that never came to their last chunk."""
        remaining, self._open = list(self._open.values()), {}
        return remaining


def _tokens(choice: Choice) -> list[TokenLogprob]:
    block = choice.logprobs
    return (block.content if isinstance(block, LogprobsBlock) else block) or []


def _message(deltas: Sequence[Delta]) -> Message:
    calls = _tool_calls(piece for delta in deltas for piece in delta.tool_calls or [])
    thought = "".join(_text(delta.reasoning_content) or _text(delta.reasoning) for delta in deltas)
    return Message(
        role="assistant",
        content="".join(_text(delta.content) for delta in deltas),
        reasoning_content=thought or None,
        tool_calls=calls or None,
    )


def _tool_calls(pieces: Iterable[DeltaToolCall]) -> list[MessageToolCall]:
    parts: dict[int, list[DeltaToolCall]] = {}
    for piece in pieces:
        parts.setdefault(piece.index, []).append(piece)
    return [_tool_call(parts[index]) for index in sorted(parts)]


def _tool_call(parts: Sequence[DeltaToolCall]) -> MessageToolCall:
    functions = [part.function for part in parts if part.function is not None]
    name = next((f.name for f in functions if f.name), None)
    given = [f.arguments for f in functions if f.arguments]
    # A server that does not stream arguments sends them once, sometimes as an object.
    arguments: Any = "".join(given) if all(isinstance(a, str) for a in given) else given[-1]
    return MessageToolCall(
        id=next((part.id for part in parts if part.id), None), function=FunctionCall(name=name, arguments=arguments)
    )


def _text(value: str | None) -> str:
    return value or ""

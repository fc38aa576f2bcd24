"""Streamed responses put together: the chunks of one completion become the response that was not streamed.

Pieces of content, reasoning and call arguments are joined in order, logprobs appended, the last finish reason kept; of
several choices only the first (index 0) is assembled, as the importer reads no other. Chunks come as a list, as the
text of an event stream (`data: {...}` lines), or as single log lines that share an id (`ChunkBuffer`): bare, or each
in the envelope of its API call (`request`, `session_id`, ...), of which that of the first line counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec

from deltah.errors import DataError
from deltah.traces.fields import decode_line, epoch_seconds, seconds
from deltah.traces.files import Position
from deltah.traces.openai_schema import (
    ChatLine,
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

_CHUNK = msgspec.json.Decoder(Response)
_DONE = "[DONE]"
_KEPT_ENDS: Final = 4096


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


class LoggedChunk(NamedTuple):
    """The chunk of a line that holds one."""

    chunk: Response
    envelope: ChatLine
    """What the line says beside it."""


@dataclass(slots=True)
class Stream:
    """Chunks of one completion that a log holds one a line."""

    envelope: ChatLine
    """What the first line says beside its chunk."""
    where: Position
    """Of the first line."""
    chunks: list[Response] = field(default_factory=list)
    duration_s: float = math.nan
    """From the first line's `started_at` to the latest end that a line states; NaN if none does."""

    def append(self, logged: LoggedChunk) -> None:
        """Take the next chunk."""
        self.chunks.append(logged.chunk)
        later = epoch_seconds(logged.envelope.started_at) - epoch_seconds(self.envelope.started_at)
        end = seconds(logged.envelope.duration_s) + (0.0 if math.isnan(later) else later)
        if not self.duration_s >= end:  # NaN is no end
            self.duration_s = self.duration_s if math.isnan(end) else end

    def line(self) -> ChatLine:
        """The line that a log of whole responses would hold; errors as in `assemble`."""
        return msgspec.structs.replace(self.envelope, response=assemble(self.chunks), duration_s=self.duration_s)


class ChunkBuffer:
    """Chunks that a log holds one a line, gathered by their completion's id until its last."""

    def __init__(self) -> None:
        """Start with no stream open."""
        self._open: dict[str, Stream] = {}
        self._ended: dict[str, None] = {}
        """Ids of the streams that ended last."""

    def add(self, logged: LoggedChunk, where: Position) -> Stream | None:
        """Take a chunk; return the stream if it was the last.

        What follows the last chunk is dropped: a usage report (OpenRouter's has an empty first choice), or the ends of
        other choices than the first.

        Args:
            logged: The chunk and its envelope; of chunks without an id, those of one session are a stream.
            where: Of its line.
        """
        chunk = logged.chunk
        key = chunk.id or str(logged.envelope.session_id or "")
        first = [choice for choice in chunk.choices or [] if choice.index == 0]
        is_late = not any(_has_content(choice) for choice in first) if key in self._ended else not first
        if is_late and chunk.error is None and key not in self._open:
            return None
        self._open.setdefault(key, Stream(logged.envelope, where)).append(logged)
        if chunk.error is None and not any(choice.finish_reason for choice in first):
            return None
        if chunk.id:
            self._ended[chunk.id] = None
            if len(self._ended) > _KEPT_ENDS:
                del self._ended[next(iter(self._ended))]
        return self._open.pop(key)

    def finish(self) -> Iterable[Stream]:
        """Streams that never came to their last chunk."""
        return self._open.values()


def _tokens(choice: Choice) -> list[TokenLogprob]:
    block = choice.logprobs
    return (block.content if isinstance(block, LogprobsBlock) else block) or []


def _has_content(choice: Choice) -> bool:
    delta = choice.delta or Delta()
    return bool(delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls or _tokens(choice))


def _message(deltas: Sequence[Delta]) -> Message:
    pieces: dict[int, list[DeltaToolCall]] = {}
    for piece in (piece for delta in deltas for piece in delta.tool_calls or []):
        pieces.setdefault(piece.index, []).append(piece)
    thought = "".join(delta.reasoning_content or delta.reasoning or "" for delta in deltas)
    return Message(
        role="assistant",
        content="".join(delta.content or "" for delta in deltas),
        reasoning_content=thought or None,
        tool_calls=[_tool_call(pieces[index]) for index in sorted(pieces)] or None,
    )


def _tool_call(pieces: Sequence[DeltaToolCall]) -> MessageToolCall:
    functions = [piece.function for piece in pieces if piece.function is not None]
    name = next((function.name for function in functions if function.name), None)
    given = [function.arguments for function in functions if function.arguments]
    # A server that does not stream arguments sends them once, sometimes as an object.
    arguments: Any = "".join(given) if all(isinstance(a, str) for a in given) else given[-1]
    id = next((piece.id for piece in pieces if piece.id), None)
    return MessageToolCall(id=id, function=FunctionCall(name=name, arguments=arguments))

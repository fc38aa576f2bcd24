"""Streamed responses: chunks of one completion, in one line or one a line, put together."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from deltah.errors import DataError
from deltah.traces.conversation import LoggedChunk
from deltah.traces.files import Position
from deltah.traces.importing import epoch_seconds, seconds
from deltah.traces.openai_schema import (
    ChatLine,
    Choice,
    Delta,
    DeltaToolCall,
    FunctionCall,
    Message,
    MessageToolCall,
    Response,
    block_tokens,
    message_text,
)

_KEPT_ENDS: Final = 4096
_CHUNK: Final = "chat.completion.chunk"


def is_streamed(response: Response) -> bool:
    """Whether a response is one chunk of a stream, also one that only reports usage or a content filter."""
    choices = response.choices or []
    if any(choice.delta is not None for choice in choices):
        return True
    if response.choices is None or any(choice.message is not None or choice.text is not None for choice in choices):
        return False
    filters = [response.prompt_filter_results]
    filters += [one for choice in choices for one in (choice.content_filter_results, choice.content_filter_offsets)]
    reports = response.usage is not None and not choices and response.object != "chat.completion"
    return response.object == _CHUNK or reports or any(one is not None for one in filters)


def error_of(choices: Sequence[Choice]) -> str | None:
    """What a provider says went wrong inside one of these choices; None if nothing did."""
    for choice in choices:
        if choice.error or choice.finish_reason == "error":
            said = choice.error.get("message", choice.error) if isinstance(choice.error, dict) else choice.error
            return f"an error ({said})" if said else "an error"
    return None


def assemble(chunks: Sequence[Response]) -> Response:
    """The response of these chunks, its first choice; `DataError` if one is an error or none has a choice."""
    choices = [choice for chunk in chunks for choice in chunk.choices or []]
    pieces = [choice for choice in choices if not choice.index]
    if any(chunk.error or chunk.object == "error" for chunk in chunks) or error_of(pieces):
        raise DataError("field response: the stream ends in an error; there is no whole assistant message to measure")
    if not pieces:
        raise DataError("field response: no chunk carries a choice; there is no assistant message to measure")
    texts = [choice.text for choice in pieces if choice.text is not None]
    message = _message([choice.delta for choice in pieces if choice.delta is not None])
    whole = Choice(
        message=None if texts and not message.content else message,
        text="".join(texts) if texts else None,
        logprobs=[token for choice in pieces for token in block_tokens(choice.logprobs)] or None,
        finish_reason=next((c.finish_reason for c in reversed(pieces) if c.finish_reason), None),
    )
    return Response(
        id=next((chunk.id for chunk in chunks if chunk.id), None),
        choices=[whole, *(Choice(index=i) for i in range(1, 1 + max(choice.index or 0 for choice in choices)))],
        model=next((chunk.model for chunk in chunks if chunk.model), None),
        # Servers that report usage in every chunk count up.
        usage=next((chunk.usage for chunk in reversed(chunks) if chunk.usage is not None), None),
    )


def _message(deltas: Sequence[Delta]) -> Message:
    thoughts = [thought for delta in deltas if (thought := delta.reasoning_content or delta.reasoning)]
    parts: list[Any] = [delta.content for delta in deltas if delta.content]
    if {str}.issuperset(map(type, parts)):
        content: Any = "".join(parts)
    else:  # parts, whose thinking is taken out later
        typed = (part if isinstance(part, list) else [{"type": "text", "text": part}] for part in parts)
        content = [one for listed in typed for one in listed]
    pieces = [piece for delta in deltas for piece in delta.tool_calls or []]
    older = [DeltaToolCall(index=0, function=delta.function_call) for delta in deltas if delta.function_call]
    return Message(
        role="assistant",
        content=content,
        reasoning_content="".join(map(message_text, thoughts)) or None,
        refusal="".join(delta.refusal or "" for delta in deltas) or None,
        tool_calls=_tool_calls(pieces or older) or None,
    )


@dataclass(slots=True)
class _Growing:
    """One call of which pieces arrive."""

    index: int | None
    id: str | None = None
    name: str | None = None
    arguments: list[Any] = field(default_factory=list)

    def add(self, piece: DeltaToolCall) -> None:
        given = _given(piece)
        self.id, self.name = self.id or piece.id, self.name or given.name
        if not given.arguments or (self.is_complete() and given.arguments == self.text()):  # sent once more
            return
        if self.text() == "{}":  # an empty object, before the pieces
            self.arguments = []
        self.arguments.append(given.arguments)

    def text(self) -> Any:
        """The arguments so far; a server that does not stream them sends them once, sometimes as an object."""
        whole = all(isinstance(part, str) for part in self.arguments)
        return "".join(self.arguments) if whole else self.arguments[-1]

    def is_complete(self) -> bool:
        """Whether the arguments are a whole object."""
        if not self.arguments or not isinstance(self.arguments[-1], str):
            return bool(self.arguments)
        if not self.arguments[-1].rstrip().endswith("}"):
            return False
        try:
            return isinstance(json.loads(self.text()), dict)
        except (ValueError, RecursionError):
            return False

    def is_over(self, piece: DeltaToolCall) -> bool:
        """Whether a piece of the same index begins another call: a new name or id, or arguments after the whole."""
        given = _given(piece)
        if given.name and self.name and given.name != self.name:
            return True
        has_ids = bool(piece.id and self.id)
        is_new = has_ids and piece.id != self.id
        if is_new and not self.arguments:
            return bool(given.name)
        begins = isinstance(given.arguments, dict) or str(given.arguments or "").lstrip().startswith("{")
        named = bool(given.name) and not (has_ids and not is_new)
        if not (begins or named or is_new) or not self.is_complete():
            return False  # some servers send a fresh id, or the name again, with every piece
        if is_new or named:
            return bool(given.name or given.arguments) and (is_new or given.arguments != self.text())
        return self.text() not in ("{}", given.arguments)


def _given(piece: DeltaToolCall) -> FunctionCall:
    """Name and arguments of a piece, wherever they stand."""
    found = piece.function or FunctionCall(arguments=piece.arguments)
    return found if found.name or not piece.name else FunctionCall(piece.name, found.arguments)


def _tool_calls(pieces: Sequence[DeltaToolCall]) -> list[MessageToolCall]:
    """Calls of a stream's pieces, in the order of their first ones; an index may always be 0, or be missing."""
    calls, latest, by_id = list[_Growing](), dict[int | None, _Growing](), dict[tuple[int | None, str], _Growing]()
    for piece in pieces:
        found = by_id.get((piece.index, piece.id)) if piece.id else None
        if found is None:
            found = latest.get(piece.index) if piece.index is not None else calls[-1] if calls else None
        if found is None or found.is_over(piece):
            calls.append(found := _Growing(piece.index))
        latest[piece.index] = found
        found.add(piece)
        if piece.id:
            by_id[piece.index, piece.id] = found
    return [MessageToolCall(id=one.id, function=FunctionCall(name=one.name, arguments=one.text())) for one in calls]


@dataclass(slots=True)
class Stream:
    """Chunks of one completion that a log holds one per line; envelope and place are those of the first line."""

    envelope: ChatLine
    where: Position
    chunks: list[Response] = field(default_factory=list)
    duration_s: float = math.nan
    """From the first line's `started_at` to the latest end that a line states; NaN if none does."""

    def append(self, logged: LoggedChunk) -> None:
        """Take the next chunk."""
        self.chunks.append(logged.chunk)
        later = epoch_seconds(logged.envelope.started_at) - epoch_seconds(self.envelope.started_at)
        end = seconds(logged.envelope.duration_s) + (0.0 if math.isnan(later) else later)
        self.duration_s = max((s for s in (self.duration_s, end) if not math.isnan(s)), default=math.nan)

    def line(self) -> ChatLine:
        """The line that a log of whole responses would hold; errors as in `assemble`."""
        return msgspec.structs.replace(self.envelope, response=assemble(self.chunks), duration_s=self.duration_s)


@dataclass
class ChunkBuffer:
    """Chunks that a log holds one per line, gathered by their completion's id until its last."""

    open: dict[str, Stream] = field(default_factory=dict)
    """Streams that have not come to their last chunk, by id."""
    _ended: dict[str, None] = field(default_factory=dict)
    """Ids of the streams that ended last."""

    def add(self, logged: LoggedChunk, where: Position) -> Stream | None:
        """Take a chunk; return the stream if it was the last. Chunks without an id are their session's.

        What follows the last chunk is dropped: a usage report (OpenRouter's has an empty first choice), or the ends of
        other choices than the first.
        """
        chunk = logged.chunk
        key = chunk.id or str(logged.envelope.session_id or "")
        first = [choice for choice in chunk.choices or [] if not choice.index and _says_something(choice)]
        is_late = not any(map(_has_content, first)) if key in self._ended else not first
        failed = bool(chunk.error) or error_of(first) is not None
        if is_late and not failed and key not in self.open:
            return None
        self.open.setdefault(key, Stream(logged.envelope, where)).append(logged)
        if not failed and not any(choice.finish_reason for choice in first):
            return None
        if chunk.id:
            self._ended[chunk.id] = None
            if len(self._ended) > _KEPT_ENDS:
                del self._ended[next(iter(self._ended))]
        return self.open.pop(key)


def _says_something(choice: Choice) -> bool:
    """Whether a choice is a piece of the message, and no mere report of a content filter."""
    filtered = choice.content_filter_results is not None or choice.content_filter_offsets is not None
    return not filtered or bool(choice.finish_reason) or _has_content(choice)


def _has_content(choice: Choice) -> bool:
    delta = choice.delta or Delta()
    written = delta.content or delta.reasoning_content or delta.reasoning or delta.refusal or delta.tool_calls
    return bool(written or delta.function_call or choice.text or choice.error or block_tokens(choice.logprobs))

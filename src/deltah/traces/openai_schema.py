"""Typed shape of an OpenAI-style chat log line, and streamed responses put together.

Only what the importer reads is declared, so that decoding skips the rest; every field is optional, as servers leave out
different ones. Token entries do not take part in garbage collection: a line holds tens of thousands of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from deltah.errors import DataError


class TopLogprob(msgspec.Struct, gc=False):
    """One alternative, whose text is not needed."""

    logprob: float | None = None


class TokenLogprob(msgspec.Struct, gc=False):
    """One sampled token."""

    token: str = ""
    id: Any = None
    """llama.cpp's name of its id in the vocabulary."""
    logprob: float | None = None
    bytes: list[int] | None = None
    top_logprobs: list[TopLogprob] | None = None


class LogprobsBlock(msgspec.Struct):
    """A choice's `logprobs`."""

    content: list[TokenLogprob] | None = None


class FunctionCall(msgspec.Struct):
    """Name and arguments; `arguments` is text in the protocol, an object in some logs."""

    name: str | None = None
    arguments: Any = ""


class MessageToolCall(msgspec.Struct):
    """One entry of `tool_calls`."""

    id: str | None = None
    function: FunctionCall | None = None


class Message(msgspec.Struct):
    """One message of any role."""

    role: str
    content: Any = None
    reasoning_content: str | None = None
    reasoning: Any = None
    """Newer vLLM's name of `reasoning_content`."""
    tool_calls: list[MessageToolCall] | None = None
    function_call: FunctionCall | None = None
    tool_call_id: str | None = None
    name: Any = None
    """Of the tool whose result it is, as some writers give it instead of an id."""
    logprobs: LogprobsBlock | list[TokenLogprob] | None = None
    finish_reason: str | None = None
    duration_s: float | None = None
    """Seconds that the tool took, on a message that holds its result; not of the protocol."""
    is_error: Any = None
    """Whether the tool failed, as Anthropic's results say it; None where only the text can."""
    status: Any = None
    """The same as LangChain says it: "error" or "success"."""


class DeltaToolCall(msgspec.Struct):
    """A piece of one tool call: the id and name come once, the arguments in parts."""

    index: int = 0
    id: str | None = None
    function: FunctionCall | None = None


class Delta(msgspec.Struct):
    """What one chunk adds to the message."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[DeltaToolCall] | None = None


class Choice(msgspec.Struct):
    """One of a response's choices; a streamed one carries `delta`, a whole one `message`."""

    index: int = 0
    message: Message | None = None
    delta: Delta | None = None
    logprobs: LogprobsBlock | list[TokenLogprob] | None = None
    token_ids: Any = None
    """vLLM's: ids of the sampled tokens, where they were asked for."""
    finish_reason: str | None = None


class ToolFunction(msgspec.Struct):
    """Name and annotations of a tool; its schema is not read."""

    name: Any = None
    annotations: Any = None


class ToolDefinition(ToolFunction):
    """One of a request's tools, as OpenAI nests it or as MCP lists it."""

    function: ToolFunction | list[Any] | str | int | float | bool | None = None


ToolList: TypeAlias = list[ToolDefinition | list[Any] | str | int | float | bool | None] | dict[str, Any] | str | None


class Request(msgspec.Struct):
    """Body of the request; the batch API wraps it in `body`."""

    messages: list[Message] = []
    model: str | None = None
    temperature: float | None = None
    top_logprobs: int | None = None
    metadata: Any = None
    tools: ToolList = None
    body: Request | None = None


class Response(msgspec.Struct):
    """Body of a response or of one streamed chunk; the batch API wraps it in `body`."""

    id: str | None = None
    choices: list[Choice] | None = None
    model: str | None = None
    object: str | None = None
    """Kind of the body; "error" is SGLang's refusal, whose other fields stand beside it."""
    error: Any = None
    usage: Any = None
    """`completion_tokens`: tokens drawn, over all choices."""
    body: Response | None = None


class ChatLine(msgspec.Struct):
    """One line: `messages`, or `request` with `response`, or the fields of a bare response or chunk."""

    messages: list[Message] | None = None
    request: Request | None = None
    response: Response | list[Response] | str | None = None
    """Whole; or its streamed chunks, as a list or as the text of the event stream."""
    chunks: list[Response] | None = None
    choices: list[Choice] | None = None
    object: str | None = None
    custom_id: str | None = None
    session_id: str | int | None = None
    conversation_id: str | int | None = None
    thread_id: str | int | None = None
    trace_id: str | int | None = None
    error: Any = None
    usage: Any = None
    started_at: Any = None
    """When the API call began, see `deltah.traces.importing.epoch_seconds`."""
    duration_s: Any = None
    """Seconds the API call took."""
    id: str | int | None = None
    group_id: str | int | None = None
    vocab_size: int | None = None
    model: str | None = None
    temperature: float | None = None
    logprobs_mode: str | None = None
    question: str | None = None
    answer: Any = None
    golden_answers: list[Any] | None = None
    prediction: str | None = None
    score: float | bool | None = None
    outcome: float | bool | None = None
    metadata: dict[str, Any] | None = None
    tools: ToolList = None


def assemble(chunks: Sequence[Response]) -> Response:
    """The response of these chunks, its first choice; `DataError` if one is an error or none has a choice."""
    if any(chunk.error is not None for chunk in chunks):
        raise DataError("field response: the stream ends in an error; there is no whole assistant message to measure")
    choices = [choice for chunk in chunks for choice in chunk.choices or []]
    pieces = [choice for choice in choices if choice.index == 0]
    if not pieces:
        raise DataError("field response: no chunk carries a choice; there is no assistant message to measure")
    whole = Choice(
        message=_message([choice.delta for choice in pieces if choice.delta is not None]),
        logprobs=[token for choice in pieces for token in block_tokens(choice.logprobs)] or None,
        finish_reason=next((c.finish_reason for c in reversed(pieces) if c.finish_reason), None),
    )
    return Response(
        id=chunks[0].id,
        choices=[whole, *(Choice(index=i) for i in range(1, 1 + max(choice.index for choice in choices)))],
        model=next((chunk.model for chunk in chunks if chunk.model), None),
        # Servers that report usage in every chunk count up.
        usage=next((chunk.usage for chunk in reversed(chunks) if chunk.usage is not None), None),
    )


def block_tokens(block: LogprobsBlock | list[TokenLogprob] | None) -> list[TokenLogprob]:
    """Sampled tokens of a block of logprobs."""
    return (block.content if isinstance(block, LogprobsBlock) else block) or []


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

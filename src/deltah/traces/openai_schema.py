"""Typed shape of an OpenAI-style chat log line: only what the importer reads, so that decoding skips the rest.

Every field is optional, as servers leave out different ones. Token entries do not take part in garbage collection:
a line holds tens of thousands of them. `Delta` is the streamed twin of `Message`; `deltah.traces.chunks` puts pieces
together.
"""

from __future__ import annotations

from typing import Any

import msgspec


class TopLogprob(msgspec.Struct, gc=False):
    """One alternative; its text is not needed, only its place in the distribution."""

    logprob: float | None = None


class TokenLogprob(msgspec.Struct, gc=False):
    """One sampled token."""

    token: str = ""
    id: Any = None
    """llama.cpp's: its id in the vocabulary."""
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
    """Ours: seconds that the tool took, on a message that holds its result."""


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


class Request(msgspec.Struct):
    """Body of the request; the batch API wraps it in `body`."""

    messages: list[Message] = []
    model: str | None = None
    temperature: float | None = None
    top_logprobs: int | None = None
    metadata: Any = None
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
    """One line: `messages`, or `request` with `response`, or a bare response or chunk."""

    messages: list[Message] | None = None
    request: Request | None = None
    response: Response | list[Response] | str | None = None
    """Whole; or its streamed chunks, as a list or as the text of the event stream."""
    chunks: list[Response] | None = None
    choices: list[Choice] | None = None
    """Of a bare response or chunk."""
    object: str | None = None
    custom_id: str | None = None
    session_id: str | int | None = None
    conversation_id: str | int | None = None
    thread_id: str | int | None = None
    trace_id: str | int | None = None
    error: Any = None
    usage: Any = None
    """Of a bare response or chunk."""
    started_at: Any = None
    """When the API call began, see `deltah.traces.fields.epoch_seconds`."""
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

"""Typed shape of an OpenAI-style chat log line: only what the importer reads, so that decoding skips the rest.

Every field is optional, as servers leave out different ones. Token entries do not take part in garbage collection:
a line holds tens of thousands of them.
"""

from __future__ import annotations

from typing import Any

import msgspec


class TopLogprob(msgspec.Struct, gc=False):
    """One alternative; its text is not needed, only its place in the distribution."""

    logprob: float | None = None


class TokenLogprob(msgspec.Struct):
    """One sampled token."""

    token: str = ""
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
    logprobs: LogprobsBlock | list[TokenLogprob] | None = None
    finish_reason: str | None = None


class Choice(msgspec.Struct):
    """One of a response's choices."""

    message: Message | None = None
    logprobs: LogprobsBlock | list[TokenLogprob] | None = None
    finish_reason: str | None = None


class Request(msgspec.Struct):
    """Body of the request."""

    messages: list[Message] = []
    model: str | None = None
    temperature: float | None = None


class Response(msgspec.Struct):
    """Body of the response."""

    id: str | None = None
    choices: list[Choice] | None = None
    model: str | None = None
    error: Any = None


class ChatLine(msgspec.Struct):
    """One line: `messages`, or `request` with `response`."""

    messages: list[Message] | None = None
    request: Request | None = None
    response: Response | None = None
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

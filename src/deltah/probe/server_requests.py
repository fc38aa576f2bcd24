"""How each server is asked for the log-probabilities of given text, and what it answers.

| dialect | request | answer |
| --- | --- | --- |
| chat | chat/completions, `prompt_logprobs`, `continue_final_message` | `prompt_logprobs`: one object a prompt token |
| completions | completions on rendered text, `prompt_logprobs` | the same, in `choices[0]` |
| echo | completions on rendered text, `echo`, `logprobs` | `choices[0].logprobs`, prompt first, then what was drawn |

The first two are vLLM's; a position's first entry is the prompt's own token, then come the k best, keyed by token id.
Echo is the legacy protocol of llama-cpp-python, SGLang and vLLM. It keys alternatives by their text, so that two tokens
of equal text hide one another; where that may have happened the position's entropy is not measured. One token is
generated in every request: llama-cpp-python reads `max_tokens=0` as "no limit".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from deltah.errors import ServerError
from deltah.probe.queries import ChatContext
from deltah.traces.messages import Message

_BROKEN = "\ufffd"
"""What stands for bytes that are no character of their own."""
Body: TypeAlias = dict[str, Any]


class Dialect(StrEnum):
    """Forms of request."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    ECHO = "echo"

    @property
    def path(self) -> str:
        """Endpoint below /v1."""
        return "/chat/completions" if self is Dialect.CHAT else "/completions"

    @property
    def takes_messages(self) -> bool:
        """Whether the server renders messages itself."""
        return self is Dialect.CHAT


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """What a server says of n tokens of a prompt."""

    texts: list[str]
    logprobs: list[float | None]
    """None for the first token, which nothing predicts."""
    top: list[list[float]]
    """Log-probabilities of the most likely tokens, the prompt's own among them; empty where they are not reliable."""


class IgnoredError(ServerError):
    """The server answers, but without log-probabilities of the prompt."""


def chat_body(context: ChatContext, text: str, top_k: int, tools: Sequence[Mapping[str, Any]]) -> Body:
    """Request whose prompt ends in an open assistant message of the given text; without any text, where it begins."""
    spoken = context.open_text + text
    last: list[Message] = [{"role": "assistant", "content": spoken}] if spoken else []
    body: Body = {
        "messages": [*context.messages, *last],
        "continue_final_message": bool(spoken),
        "add_generation_prompt": not spoken,
        "prompt_logprobs": top_k,
    }
    return body | ({"tools": [dict(tool) for tool in tools]} if tools else {})


def text_body(dialect: Dialect, prompt: str, top_k: int) -> Body:
    """Request for rendered text."""
    if dialect is Dialect.ECHO:
        return {"prompt": prompt, "echo": True, "logprobs": top_k}
    return {"prompt": prompt, "prompt_logprobs": top_k}


def read_prompt(dialect: Dialect, answer: Mapping[str, Any], top_k: int) -> PromptTokens:
    """Tokens of the prompt in a server's answer.

    Raises:
        IgnoredError: if it does not report them.
    """
    try:
        if dialect is Dialect.ECHO:
            return _read_echo(answer, top_k)
        block = answer["prompt_logprobs"] if dialect is Dialect.CHAT else answer["choices"][0]["prompt_logprobs"]
        return _read_positions(block)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise IgnoredError(
            f"the server ignores the request for log-probabilities of the prompt ({dialect.value}): its answer has no "
            "such block; vLLM (prompt_logprobs), llama-cpp-python and SGLang (echo, with --chat-template) report them, "
            "llama.cpp's own server and hosted chat APIs do not"
        ) from error


def _read_positions(block: Sequence[Mapping[str, Any] | None]) -> PromptTokens:
    texts, logprobs, top = list[str](), list[float | None](), list[list[float]]()
    for position in block:
        entries = list((position or {}).values())
        texts.append(str(entries[0].get("decoded_token") or "") if entries else "")
        logprobs.append(float(entries[0]["logprob"]) if entries else None)
        top.append([float(entry["logprob"]) for entry in entries])
    if all(value is None for value in logprobs):
        raise ValueError("no position is reported")
    return PromptTokens(texts, logprobs, top)


def _read_echo(answer: Mapping[str, Any], top_k: int) -> PromptTokens:
    block = answer["choices"][0]["logprobs"]
    texts, logprobs = list(map(str, block["tokens"])), list(block["token_logprobs"])
    alternatives = block.get("top_logprobs") or [None] * len(texts)
    drawn = int(answer["usage"]["completion_tokens"])
    n = len(texts) - drawn
    if n < 2 or len(logprobs) != len(texts) or len(alternatives) != len(texts):
        raise ValueError("the prompt is not echoed")
    values = [None if value is None else float(value) for value in logprobs[:n]]
    return PromptTokens(texts[:n], values, [_reliable(entry, top_k) for entry in alternatives[:n]])


def _reliable(entry: Mapping[str, float] | None, top_k: int) -> list[float]:
    """Log-probabilities of one position, unless texts of several tokens may have fallen together."""
    if not entry or len(entry) < top_k or any(not text or _BROKEN in text for text in entry):
        return []
    return [float(value) for value in entry.values()]


def tail_start(texts: Sequence[str], tail: str) -> int | None:
    """First of the last tokens that together spell a text; the first may begin before it. None if they do not."""
    spelled = ""
    for start in range(len(texts) - 1, -1, -1):
        spelled = texts[start] + spelled
        if len(spelled) >= len(tail):
            return start if spelled.endswith(tail) else None
    return None

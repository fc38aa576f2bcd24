"""Formats that are not read: the signs by which a record shows one, its name, and what to export instead."""

from __future__ import annotations

import re
from typing import Final, NamedTuple


class Unread(NamedTuple):
    """A format that is known and not read."""

    signs: tuple[str, ...]
    """Patterns that all stand in a record's first bytes."""
    name: str
    instead: str


_HEAD_BYTES: Final = 20_000
_CHAT: Final = "log chat completions with logprobs and top_logprobs"
UNREAD: Final = (
    Unread(
        (r'"conversations"\s*:\s*\[\s*\{', r'"from"\s*:'),
        "ShareGPT",
        "write turns as OpenAI messages, calls as tool_calls and results as messages of role tool",
    ),
    Unread((r'"instruction"\s*:', r'"output"\s*:'), "a data set of instructions", "it has no tool calls to measure"),
    Unread(
        (r'"meta_info"\s*:', r'"(?:output_ids|text|output_token_logprobs)"\s*:'),
        "SGLang's own /generate",
        f"call /v1/chat/completions, and {_CHAT}",
    ),
    Unread(
        (r'"(?:completion_probabilities|tokens_evaluated|tokens_predicted)"\s*:',),
        "llama.cpp's own /completion",
        f"call /v1/chat/completions, and {_CHAT}",
    ),
    Unread((r'"generated_text"\s*:',), "TGI's own /generate", f"call /v1/chat/completions, and {_CHAT}"),
    Unread(
        (r'"(?:ncols|column_types|_type)"\s*:|"columns"\s*:\s*\[', r'"data"\s*:\s*\[\s*\['),
        "a table of Weights & Biases",
        "export the calls of Weave, or the rows as JSON lines with their messages",
    ),
    Unread(
        (r'"ml_obs"|"meta\.(?:kind|input|output)|"span\.kind"\s*:\s*"(?:llm|tool|agent|workflow)"',),
        "Datadog's LLM observability",
        "send the same spans with OpenTelemetry's exporter to a file",
    ),
    Unread(
        (r'"root_span_id"\s*:', r'"span_attributes"\s*:'),
        "Braintrust",
        "send the same spans with OpenTelemetry's exporter to a file",
    ),
    Unread((r'"part_kind"\s*:',), "pydantic-ai's own messages", "export spans with OpenTelemetry, as Logfire does"),
    Unread((r'"resourceLogs"\s*:',), "logs of OpenTelemetry", "export traces: spans hold the messages and the tools"),
    Unread((r'"resourceMetrics"\s*:',), "metrics of OpenTelemetry", "export traces: spans hold the messages"),
    Unread((r"\A\s*[\[{]+\s*'\w+':",), "a print-out of Python", "write records with json.dumps"),
    Unread((r'\A\s*"(?:User|Human|Assistant)\s*:',), "a chat as text", "write its messages as JSON lines"),
    Unread(
        (r"\A(?:\([^)]*\) )?(?:INFO|DEBUG|WARNING|ERROR)[: ]",),
        "the text log of a server",
        f"it has no answers; {_CHAT}",
    ),
    Unread((r"\A\d{4}-\d\d-\d\d[T ]\d\d:\d\d",), "a text log", f"it has no answers; {_CHAT}"),
    Unread(
        (r'\A\ufeff?"?[A-Za-z_][\w .]*"?(?:[,;\t]"?[A-Za-z_][\w .]*"?){2,}\s*\Z',),
        "CSV",
        "export JSON or JSON lines, as Langfuse and LangSmith offer too; a table of rows as Parquet",
    ),
    Unread((r"\A<\?xml|\A\s*<!?\w+[^>]*>\s*\Z",), "XML or HTML", "export JSON or JSON lines"),
    Unread((r"\A(?:---|\w+:)\s*\Z",), "YAML", "export JSON or JSON lines"),
)


def unread_format(data: bytes) -> str | None:
    """What to do about a record of a format that is known and not read; None for any other."""
    head = data[:_HEAD_BYTES].decode("utf-8", errors="replace")
    found = next((one for one in UNREAD if all(re.search(sign, head) for sign in one.signs)), None)
    return None if found is None else f"this is {found.name}, which is not read; {found.instead}"

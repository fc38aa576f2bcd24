"""Formats that are known and not read: what to export instead."""

from __future__ import annotations

import re
from typing import Final

_HEAD_BYTES: Final = 20_000
_CHAT: Final = "log chat completions with logprobs and top_logprobs"
_OTHER_WAY: Final = f"call /v1/chat/completions, and {_CHAT}"
_SPANS: Final = "send the same spans with OpenTelemetry's exporter to a file"
_JSON: Final = "export JSON or JSON lines"
_OF_TURNS: Final = "write turns as OpenAI messages, calls as tool_calls and results as messages of role tool"
_TABLE: Final = "export the calls of Weave, or the rows as JSON lines with their messages"
_ROWS: Final = "export JSON or JSON lines, as Langfuse and LangSmith offer too; a table of rows as Parquet"
UNREAD: Final = (
    ("ShareGPT", _OF_TURNS, r'"conversations"\s*:\s*\[\s*\{', r'"from"\s*:'),
    ("a data set of instructions", "it has no tool calls to measure", r'"instruction"\s*:', r'"output"\s*:'),
    ("SGLang's own /generate", _OTHER_WAY, r'"meta_info"\s*:', r'"(?:output_ids|text|output_token_logprobs)"\s*:'),
    ("llama.cpp's own /completion", _OTHER_WAY, r'"(?:completion_probabilities|tokens_(?:evaluated|predicted))"\s*:'),
    ("TGI's own /generate", _OTHER_WAY, r'"generated_text"\s*:'),
    (
        "a table of Weights & Biases",
        _TABLE,
        r'"(?:ncols|column_types|_type)"\s*:|"columns"\s*:\s*\[',
        r'"data"\s*:\s*\[\s*\[',
    ),
    (
        "Datadog's LLM observability",
        _SPANS,
        r'"ml_obs"|"meta\.(?:kind|input|output)|"span\.kind"\s*:\s*"(?:llm|tool|agent|workflow)"',
    ),
    ("Braintrust", _SPANS, r'"root_span_id"\s*:', r'"span_attributes"\s*:'),
    ("pydantic-ai's own messages", "export spans with OpenTelemetry, as Logfire does", r'"part_kind"\s*:'),
    ("logs of OpenTelemetry", "export traces: spans hold the messages and the tools", r'"resourceLogs"\s*:'),
    ("metrics of OpenTelemetry", "export traces: spans hold the messages", r'"resourceMetrics"\s*:'),
    ("a print-out of Python", "write records with json.dumps", r"\A\s*[\[{]+\s*'\w+':"),
    ("a chat as text", "write its messages as JSON lines", r'\A\s*"(?:User|Human|Assistant)\s*:'),
    ("the text log of a server", f"it has no answers; {_CHAT}", r"\A(?:\([^)]*\) )?(?:INFO|DEBUG|WARNING|ERROR)[: ]"),
    ("a text log", f"it has no answers; {_CHAT}", r"\A\d{4}-\d\d-\d\d[T ]\d\d:\d\d"),
    ("CSV", _ROWS, r'\A\ufeff?"?[A-Za-z_][\w .]*"?(?:[,;\t]"?[A-Za-z_][\w .]*"?){2,}\s*\Z'),
    ("XML or HTML", _JSON, r"\A<\?xml|\A\s*<!?\w+[^>]*>\s*\Z"),
    ("YAML", _JSON, r"\A(?:---|\w+:)\s*\Z"),
)
"""Name, what to do instead, and the patterns that all stand in a record's first bytes."""


def unread_format(data: bytes) -> str | None:
    """What to do about a record of a format that is known and not read; None for any other."""
    head = data[:_HEAD_BYTES].decode("utf-8", errors="replace")
    found = ((name, instead) for name, instead, *signs in UNREAD if all(re.search(sign, head) for sign in signs))
    return next((f"this is {name}, which is not read; {instead}" for name, instead in found), None)

"""One file a format: importing this package registers the formats of `deltah.traces.importing.IMPORTERS`."""

from deltah.traces import record  # isort: skip  # our own stands first where the formats are listed
from deltah.traces.importers import (
    anthropic,
    inspect_log,
    langfuse,
    langsmith,
    openai_chat,
    otel,
    prime_rl,
    trl_log,
    verl_dump,
)

__all__ = [
    "anthropic",
    "inspect_log",
    "langfuse",
    "langsmith",
    "openai_chat",
    "otel",
    "prime_rl",
    "record",
    "trl_log",
    "verl_dump",
]

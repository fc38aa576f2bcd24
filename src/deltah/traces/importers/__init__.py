"""One file a format: importing this package registers the formats of `deltah.traces.importing.IMPORTERS`."""

from deltah.traces import record  # isort: skip  # our own stands first where the formats are listed
from deltah.traces.importers import (
    atif,
    inspect_log,
    nemo_gym,
    ollama_chat,
    openai_chat,
    prime_rl,
    responses,
    trl_log,
    verifiers_results,
    verifiers_trace,
    verl_dump,
)

__all__ = [
    "atif",
    "inspect_log",
    "nemo_gym",
    "ollama_chat",
    "openai_chat",
    "prime_rl",
    "record",
    "responses",
    "trl_log",
    "verifiers_results",
    "verifiers_trace",
    "verl_dump",
]

"""One file a format: importing this package registers the formats of `deltah.traces.importing.IMPORTERS`."""

from deltah.traces import record  # isort: skip  # our own stands first where the formats are listed
from deltah.traces import inspect_ai
from deltah.traces.importers import openai_chat, prime_rl, trl_log, verl_dump

__all__ = ["inspect_ai", "openai_chat", "prime_rl", "record", "trl_log", "verl_dump"]

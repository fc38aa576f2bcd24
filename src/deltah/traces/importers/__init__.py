"""One file a format: importing this package registers the formats of `deltah.traces.importing.IMPORTERS`."""

from deltah.traces.importers import prime_rl, trl_log, verl_dump

__all__ = ["prime_rl", "trl_log", "verl_dump"]

"""Traces on disk: our versioned record, its JSONL codec, and importers for foreign logs.

One datum's way: file (`files`) -> record -> importer (`importers`) -> trajectory (`conversation`). Arithmetic on
entropies lives in `deltah.core`.
"""

from deltah.traces.reader import ReadProblem, TraceReader, read_traces
from deltah.traces.record import SCHEMA_VERSION, TraceWriter, write_traces

__all__ = ["SCHEMA_VERSION", "ReadProblem", "TraceReader", "TraceWriter", "read_traces", "write_traces"]

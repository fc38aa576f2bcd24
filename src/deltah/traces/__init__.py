"""Traces on disk: our versioned record, its JSONL codec, and importers for foreign logs.

`read_traces` detects the format of each line from its content and yields `Trajectory` objects; a line that cannot be
read becomes a `ReadProblem` and never hides the valid ones around it. Arithmetic on entropies lives in `deltah.core`.
"""

from deltah.traces.jsonl import ReadProblem, TraceReader, TraceWriter, read_traces, write_traces
from deltah.traces.record import SCHEMA_VERSION

__all__ = [
    "SCHEMA_VERSION",
    "ReadProblem",
    "TraceReader",
    "TraceWriter",
    "read_traces",
    "write_traces",
]

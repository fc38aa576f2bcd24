"""Importer for exports of LangSmith: runs, one a record or nested; the mapping is in docs/formats/langsmith.md.

Lost: other runs, token counts, events, tags, feedback on single runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from deltah.errors import DataError
from deltah.traces.importing import IMPORTERS, RecordContext
from deltah.traces.parts import first_of, json_value, mapping, objects
from deltah.traces.spans import Span


@IMPORTERS.register(
    "langsmith", title="LangSmith", meaning="Export of LangSmith", fields=("run_type", ("inputs", "outputs"))
)
def read(record: dict[str, Any], context: RecordContext) -> list[Span]:
    """Read a run and those inside it."""
    trace = first_of(record, ("trace_id", "id"))
    if trace is None:
        raise DataError("fields trace_id and id: missing; export runs with their ids")
    return list(_spans(record, str(trace), None))


def _spans(run: Mapping[str, Any], trace: str, parent: str | None) -> Iterator[Span]:
    known = mapping(mapping(run.get("extra")).get("metadata"))
    feedback = mapping(run.get("feedback_stats"))
    kind = str(run.get("run_type"))
    span = Span(
        trace=trace,
        id=str(run.get("id")),
        parent=first_of(run, ("parent_run_id",)) or parent,
        kind=kind,
        name=run.get("name") or "",
        started_at=run.get("start_time"),
        ended_at=run.get("end_time"),
        input=run.get("inputs") if kind == "llm" else _only(run.get("inputs"), "input"),
        output=run.get("outputs") if kind == "llm" else _only(run.get("outputs"), "output"),
        error=run.get("error") or None,
        session=first_of(known, ("session_id", "thread_id", "conversation_id")),
        model=known.get("ls_model_name"),
        temperature=known.get("ls_temperature"),
        cost=run.get("total_cost") if kind == "llm" else None,
        scores={key: stats["avg"] for key, stats in feedback.items() if isinstance(stats, Mapping) and "avg" in stats},
    )
    yield span
    for child in objects(run.get("child_runs")):
        yield from _spans(child, trace, span.id)


def _only(fields: Any, name: str) -> Any:
    """The one value that a tool takes or gives, which stands under this name."""
    fields = json_value(fields)
    return fields[name] if isinstance(fields, Mapping) and set(fields) == {name} else fields

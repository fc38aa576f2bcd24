"""Importer for exports of LangSmith: runs, one a record or nested; the mapping is in docs/formats/langsmith.md.

Lost: other runs, token counts, events, tags, feedback on single runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from deltah.errors import DataError
from deltah.traces.importing import IMPORTERS, RecordContext, epoch_seconds, outcome_of, scalars
from deltah.traces.parts import first_of, json_value, objects
from deltah.traces.spans import Span
from deltah.traces.wrapping import number

_SESSION = ("session_id", "thread_id", "conversation_id")


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
    id = str(run.get("id"))
    yield _span(run, id, trace, parent)
    for child in objects(run.get("child_runs")):
        yield from _spans(child, trace, id)


def _span(run: Mapping[str, Any], id: str, trace: str, parent: str | None) -> Span:
    extra = json_value(run.get("extra"))
    known = extra.get("metadata") if isinstance(extra, Mapping) else None
    known = known if isinstance(known, Mapping) else {}
    inputs, outputs = json_value(run.get("inputs")), json_value(run.get("outputs"))
    kind = {"llm": "llm", "tool": "tool"}.get(str(run.get("run_type")), "")
    given, stats = run.get("parent_run_id"), json_value(run.get("feedback_stats"))
    scores = (
        {k: s["avg"] for k, s in stats.items() if isinstance(s, Mapping) and "avg" in s}
        if isinstance(stats, Mapping)
        else {}
    )
    grades = [grade for value in scores.values() if (grade := outcome_of(value)) is not None]
    session, model = first_of(known, _SESSION), known.get("ls_model_name")
    return Span(
        trace=trace,
        id=id,
        parent=parent if given is None else str(given),
        kind=kind,
        name=str(run.get("name") or ""),
        started_at=epoch_seconds(run.get("start_time")),
        ended_at=epoch_seconds(run.get("end_time")),
        input=inputs if kind == "llm" else _only(inputs, "input"),
        output=outputs if kind == "llm" else _only(outputs, "output"),
        error=str(run["error"]) if run.get("error") else None,
        session=None if session is None else str(session),
        model=model if isinstance(model, str) else None,
        temperature=number(known.get("ls_temperature")),
        cost=number(run.get("total_cost")) if kind == "llm" else None,
        outcome=grades[0] if len(grades) == 1 else None,
        metadata=scalars({f"score/{name}": value for name, value in scores.items()}),
    )


def _only(fields: Any, name: str) -> Any:
    """The one value that a tool takes or gives, which stands under this name."""
    return fields[name] if isinstance(fields, Mapping) and set(fields) == {name} else fields

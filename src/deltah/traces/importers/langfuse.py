"""Importer for exports of Langfuse, of traces or of observations; the mapping is in docs/formats/langfuse.md.

Lost: other observations, token counts, prompts and their versions, scores of single observations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from deltah.errors import DataError
from deltah.traces.importing import IMPORTERS, RecordContext, epoch_seconds, outcome_of, scalars
from deltah.traces.parts import first_of, json_value, objects
from deltah.traces.spans import Span
from deltah.traces.wrapping import number

_SIGN: Final = re.compile(
    rb'"(?:parentObservationId|parent_observation_id|observations|providedModelName|provided_model_name)"\s*:'
    rb'|"type"\s*:\s*"(?:GENERATION|SPAN|EVENT|TOOL|AGENT|CHAIN|RETRIEVER)"'
)


@IMPORTERS.register(
    "langfuse",
    title="Langfuse",
    meaning="Export of Langfuse",
    fields=(("observations", "traceId", "trace_id"),),
    sign=_SIGN.search,
)
def read(record: dict[str, Any], context: RecordContext) -> list[Span]:
    """Read a trace with its observations, or one observation."""
    listed = json_value(record.get("observations"))
    if listed is None:
        return [_span(record, str(first_of(record, ("traceId", "trace_id"))))]
    whole = record["trace"] if isinstance(record.get("trace"), Mapping) else record
    if not isinstance(listed, list) or not all(isinstance(item, Mapping) for item in listed):
        raise DataError("field observations: expected a list of objects; export traces with their observations")
    trace = str(first_of(whole, ("id", "traceId")) or context.default_id)
    return [_trace(whole, trace), *(_span(item, trace) for item in listed)]


def _trace(whole: Mapping[str, Any], trace: str) -> Span:
    """What stands for all of a trace, as a span around the others."""
    scores = {str(score.get("name")): score.get("value") for score in objects(whole.get("scores"))}
    grades = [grade for value in scores.values() if (grade := outcome_of(value)) is not None]
    return Span(
        trace=trace,
        id=f"{trace}/trace",
        session=_text(first_of(whole, ("sessionId", "session_id"))),
        outcome=grades[0] if len(grades) == 1 else None,
        metadata=scalars({f"score/{name}": value for name, value in scores.items()}),
    )


def _span(raw: Mapping[str, Any], trace: str) -> Span:
    kind = {"GENERATION": "llm", "TOOL": "tool"}.get(str(raw.get("type")).upper(), "")
    parameters = json_value(first_of(raw, ("modelParameters", "model_parameters")))
    costs = json_value(first_of(raw, ("costDetails", "cost_details")))
    cost = first_of(raw, ("calculatedTotalCost", "totalCost", "total_cost"))
    output = raw.get("output")
    return Span(
        trace=trace,
        id=str(raw.get("id")),
        parent=_text(first_of(raw, ("parentObservationId", "parent_observation_id"))),
        kind=kind,
        name=str(raw.get("name") or ""),
        started_at=epoch_seconds(first_of(raw, ("startTime", "start_time"))),
        ended_at=epoch_seconds(first_of(raw, ("endTime", "end_time"))),
        input=json_value(raw.get("input")) if kind == "llm" else raw.get("input"),
        output=json_value(output) if kind == "llm" else output,
        error=str(first_of(raw, ("statusMessage", "status_message")) or "error")
        if raw.get("level") == "ERROR"
        else None,
        session=_text(first_of(raw, ("sessionId", "session_id"))),
        model=_text(first_of(raw, ("model", "providedModelName", "provided_model_name"))),
        temperature=number(parameters.get("temperature")) if isinstance(parameters, Mapping) else None,
        cost=number(cost if cost is not None or not isinstance(costs, Mapping) else costs.get("total")),
    )


def _text(value: Any) -> str | None:
    return None if value in (None, "") else str(value)

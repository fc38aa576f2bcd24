"""Importer for exports of Langfuse, of traces or of observations; the mapping is in docs/formats/langfuse.md.

Lost: other observations, token counts, prompts and their versions, scores of single observations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from deltah.errors import DataError
from deltah.traces.importing import IMPORTERS, RecordContext
from deltah.traces.parts import first_of, json_value, mapping, objects
from deltah.traces.spans import Span

_SIGN: Final = re.compile(
    rb'"(?:parentObservationId|parent_observation_id|observations|providedModelName|provided_model_name)"\s*:'
    rb'|"type"\s*:\s*"(?:GENERATION|SPAN|EVENT|TOOL|AGENT|CHAIN|RETRIEVER)"'
)
_SESSION: Final = ("sessionId", "session_id")


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
    scores = {str(score.get("name")): score.get("value") for score in objects(whole.get("scores"))}
    around = Span(trace=trace, id=f"{trace}/trace", session=first_of(whole, _SESSION), scores=scores)
    return [around, *(_span(item, trace) for item in listed)]


def _span(raw: Mapping[str, Any], trace: str) -> Span:
    cost = first_of(raw, ("calculatedTotalCost", "totalCost", "total_cost"))
    costs = mapping(first_of(raw, ("costDetails", "cost_details")))
    reason = first_of(raw, ("statusMessage", "status_message")) or "error"
    return Span(
        trace=trace,
        id=str(raw.get("id")),
        parent=first_of(raw, ("parentObservationId", "parent_observation_id")),
        kind=str(raw.get("type")),
        name=raw.get("name") or "",
        started_at=first_of(raw, ("startTime", "start_time")),
        ended_at=first_of(raw, ("endTime", "end_time")),
        input=raw.get("input"),
        output=raw.get("output"),
        error=reason if raw.get("level") == "ERROR" else None,
        session=first_of(raw, _SESSION),
        model=first_of(raw, ("model", "providedModelName", "provided_model_name")),
        temperature=mapping(first_of(raw, ("modelParameters", "model_parameters"))).get("temperature"),
        cost=costs.get("total") if cost is None else cost,
    )

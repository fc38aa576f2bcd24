"""Importer for spans of OpenTelemetry: OTLP JSON, or one span a record; the mapping is in docs/formats/otel.md.

Lost: spans of other kinds, token counts, links, resources.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from deltah.errors import DataError
from deltah.traces.importers import genai, openinference
from deltah.traces.importing import IMPORTERS, RecordContext, epoch_seconds, finite, seconds
from deltah.traces.parts import first_of, json_value, objects
from deltah.traces.spans import Span

_TRACE: Final = ("traceId", "trace_id", "traceID", "context.trace_id")
_SPAN: Final = ("spanId", "span_id", "spanID", "context.span_id", "id")
_PARENT: Final = ("parentSpanId", "parent_span_id", "parent_id", "parentId")
_START: Final = ("startTimeUnixNano", "start_time_unix_nano", "start_time", "startTime", "start_timestamp", "timestamp")
_END: Final = ("endTimeUnixNano", "end_time_unix_nano", "end_time", "endTime", "end_timestamp")
_SIGN: Final = re.compile(
    rb'"resource_?[sS]pans"\s*:|"(?:context\.)?trace_?(?:id|Id|ID)"\s*:.{0,2000}?"(?:context\.)?span_?(?:id|Id|ID)"\s*:'
    rb'|"(?:context\.)?span_?(?:id|Id|ID)"\s*:.{0,2000}?"(?:context\.)?trace_?(?:id|Id|ID)"\s*:',
    re.DOTALL,
)
_BASE64: Final = re.compile("[A-Za-z0-9+/]{11}=|[A-Za-z0-9+/]{22}==")


@IMPORTERS.register(
    "otel",
    title="OpenTelemetry",
    meaning="Spans of OpenTelemetry (GenAI) or OpenInference",
    fields=(("resourceSpans", "resource_spans", "context", "spans", *_SPAN[:-1]),),
    sign=_SIGN.search,
)
def read(record: dict[str, Any], context: RecordContext) -> list[Span]:
    """Read the spans of one record."""
    return [_span(raw) for raw in _raw_spans(record)]


def _raw_spans(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Spans of OTLP, of Jaeger's trace, or the one span that a record is."""
    resources = first_of(record, ("resourceSpans", "resource_spans"))
    if resources is None:
        yield from objects(record["spans"]) if isinstance(record.get("spans"), list) else [record]
        return
    for resource in objects(resources):
        for scope in objects(first_of(resource, ("scopeSpans", "scope_spans", "instrumentationLibrarySpans"))):
            yield from objects(scope.get("spans"))


def _span(raw: Mapping[str, Any]) -> Span:
    context = first_of(raw, ("context", "spanContext"))
    fields = {**raw, **(context if isinstance(context, Mapping) else {})}
    trace, id, parent = (_id(first_of(fields, names)) for names in (_TRACE, _SPAN, _PARENT))
    if trace is None or id is None:
        raise DataError("a span without trace id or span id; expected both, as OpenTelemetry's exporters write them")
    for reference in objects(raw.get("references")):
        parent = parent or _id(reference.get("spanID"))
    attributes = {openinference.KIND: raw.get("span_kind"), **_attributes(raw)}  # Phoenix moves the kind out
    events = [(e.get("name"), _attributes(e)) for e in objects(raw.get("events"))]
    start, end = _moment(first_of(fields, _START)), _moment(first_of(fields, _END))
    took = finite(raw.get("duration"))
    if math.isnan(end) and took is not None:
        end = start + took / 1e6
    described = openinference.described(attributes) or genai.described(attributes, events)
    return Span(
        trace=trace,
        id=id,
        parent=parent,
        started_at=start,
        ended_at=end,
        error=_error(raw, attributes, events),
        **{"name": str(first_of(raw, ("name", "operationName", "span_name")) or ""), **described},
    )


def _id(value: Any) -> str | None:
    """An id in hexadecimal digits; protobuf's own JSON writes base64."""
    if value in (None, ""):
        return None
    text = str(value).removeprefix("0x")
    return base64.b64decode(text).hex() if _BASE64.fullmatch(text) else text


def _moment(value: Any) -> float:
    """A time in seconds; OTLP writes nanoseconds as text, JavaScript seconds and nanoseconds as a pair."""
    if isinstance(value, list) and len(value) == 2:
        return seconds(value[0]) + seconds(value[1]) / 1e9
    return epoch_seconds(int(value) if isinstance(value, str) and value.isdecimal() else value)


def _attributes(holder: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes by name, whether an object, OTLP's list of keys and values, or columns of a table."""
    given = json_value(first_of(holder, ("attributes", "tags", "fields")))
    if isinstance(given, list):
        return _pairs(given)
    columns = {name.removeprefix("attributes."): v for name, v in holder.items() if name.startswith("attributes.")}
    return columns | (given if isinstance(given, dict) else {})


def _pairs(given: Any) -> dict[str, Any]:
    return {str(item.get("key")): _value(item.get("value")) for item in objects(given)}


def _value(given: Any) -> Any:
    """A value of OTLP, which names its type."""
    if not isinstance(given, Mapping) or len(given) != 1:
        return given
    name, value = next((name.replace("_", "").lower(), value) for name, value in given.items())
    inner = value.get("values") if isinstance(value, Mapping) else None
    if name == "intvalue":
        return int(value) if isinstance(value, str) and value.lstrip("-").isdecimal() else value
    if name == "arrayvalue":
        return [_value(item) for item in inner] if isinstance(inner, list) else []
    if name == "kvlistvalue":
        return _pairs(inner)
    return value if name in ("stringvalue", "doublevalue", "boolvalue", "bytesvalue") else given


def _error(raw: Mapping[str, Any], attributes: Mapping[str, Any], events: Sequence[tuple[Any, Any]]) -> str | None:
    """Why a span failed."""
    status = raw.get("status")
    status = status if isinstance(status, Mapping) else {"code": first_of(raw, ("status_code", "status"))}
    code = first_of(status, ("code", "status_code"))
    message = first_of(status, ("message", "description")) or raw.get("status_message")
    thrown = next((said.get("exception.message") for name, said in events if name == "exception"), None)
    failed = code == 2 or str(code).upper().endswith("ERROR") or attributes.get("error") is True
    return str(message or thrown or attributes.get("error.type") or "error") if failed else None

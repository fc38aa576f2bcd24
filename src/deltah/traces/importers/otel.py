"""Importer for spans of OpenTelemetry: OTLP JSON, or one span a record; the mapping is in docs/formats/otel.md.

Attributes are those of OpenInference and of the conventions for generative AI: `gen_ai.*` with its older events, and
what OpenLLMetry, Logfire, Langfuse, MLflow, Google's ADK and the Vercel AI SDK write instead.
Lost: spans of other kinds, token counts, links, resources, settings of requests but the temperature; documents of
retrievers, embeddings, variables of prompts.
"""

from __future__ import annotations

import base64
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from deltah.errors import DataError
from deltah.traces.importing import IMPORTERS, RecordContext, finite
from deltah.traces.parts import first_of, json_value, mapping, objects
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

_OPENINFERENCE: Final = "openinference.span.kind"
"""Attribute that every span of OpenInference has."""
_KIND: Final = (
    _OPENINFERENCE, "traceloop.span.kind", "langfuse.observation.type", "langsmith.span.kind", "mlflow.spanType",
)  # fmt: skip
_ADK: Final = "gcp.vertex.agent"
_GIVEN: Final = ("traceloop.entity.input", "langfuse.observation.input", "mlflow.spanInputs", f"{_ADK}.llm_request")
_GOT: Final = ("traceloop.entity.output", "langfuse.observation.output", "mlflow.spanOutputs", f"{_ADK}.llm_response")
_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "session": ("gen_ai.conversation.id", "session.id", "langfuse.session.id"),
    "model": (
        "gen_ai.response.model", "gen_ai.request.model", "ai.model.id", "langfuse.observation.model.name",
        "llm.model_name",
    ),
    "temperature": ("gen_ai.request.temperature", "temperature"),
    "cost": ("llm.cost.total",),
}  # fmt: skip
_TOOL_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "name": ("gen_ai.tool.name", "ai.toolCall.name", "tool.name", "traceloop.entity.name"),
    "call_id": ("gen_ai.tool.call.id", "ai.toolCall.id", "tool_call.id", "tool.id"),
    "input": (
        "gen_ai.tool.call.arguments", "tool_arguments", "ai.toolCall.args", f"{_ADK}.tool_call_args", *_GIVEN,
        "input.value", "tool.parameters",
    ),
    "output": (
        "gen_ai.tool.call.result", "tool_response", "ai.toolCall.result", f"{_ADK}.tool_response", *_GOT,
        "output.value",
    ),
}  # fmt: skip
_INPUT: Final = (
    "llm.input_messages", "gen_ai.input.messages", "gen_ai.prompt", "ai.prompt.messages", *_GIVEN, "input.value",
)  # fmt: skip
_OUTPUT: Final = ("llm.output_messages", "gen_ai.output.messages", "gen_ai.completion", *_GOT, "output.value")


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
    fields = {**raw, **mapping(first_of(raw, ("context", "spanContext")))}
    trace, id, parent = (_id(first_of(fields, names)) for names in (_TRACE, _SPAN, _PARENT))
    if trace is None or id is None:
        raise DataError("a span without trace id or span id; expected both, as OpenTelemetry's exporters write them")
    for reference in objects(raw.get("references")):
        parent = parent or _id(reference.get("spanID"))
    attributes = {_OPENINFERENCE: raw.get("span_kind"), **_attributes(raw)}  # Phoenix moves the kind out
    events = [(event.get("name"), _attributes(event)) for event in objects(raw.get("events"))]
    start, end, took = first_of(fields, _START), first_of(fields, _END), finite(raw.get("duration"))
    if end is None and took is not None and finite(start) is not None:
        end = start + took  # Jaeger's, both in microseconds
    said = _described(attributes, events)
    said.setdefault("name", first_of(raw, ("name", "operationName", "span_name")))
    error = _error(raw, attributes, events)
    return Span(**said, trace=trace, id=id, parent=parent, started_at=start, ended_at=end, error=error)


def _id(value: Any) -> str | None:
    """An id in hexadecimal digits; protobuf's own JSON writes base64."""
    if value in (None, ""):
        return None
    text = str(value).removeprefix("0x")
    return base64.b64decode(text).hex() if _BASE64.fullmatch(text) else text


def _attributes(holder: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes by name, whether an object, OTLP's list of keys and values, or columns of a table."""
    given = first_of(holder, ("attributes", "tags", "fields"))
    columns = {name.removeprefix("attributes."): v for name, v in holder.items() if name.startswith("attributes.")}
    return {**columns, **_pairs(json_value(given)), **mapping(given)}


def _pairs(given: Any) -> dict[str, Any]:
    return {str(item.get("key")): _value(item.get("value")) for item in objects(given)}


def _value(given: Any) -> Any:
    """A value of OTLP, which names its type."""
    if not isinstance(given, Mapping) or len(given) != 1:
        return given
    ((name, value),) = given.items()
    name = name.replace("_", "").lower()
    values = mapping(value).get("values")
    if name in ("arrayvalue", "kvlistvalue"):
        return (
            _pairs(values) if name == "kvlistvalue" else list(map(_value, values if isinstance(values, list) else ()))
        )
    if name == "intvalue" and isinstance(value, str) and value.lstrip("-").isdecimal():
        return int(value)
    return value if name in ("intvalue", "stringvalue", "doublevalue", "boolvalue", "bytesvalue") else given


def _error(raw: Mapping[str, Any], attributes: Mapping[str, Any], events: Sequence[tuple[Any, Any]]) -> str | None:
    """Why a span failed."""
    status = mapping(raw.get("status")) or {"code": first_of(raw, ("status_code", "status"))}
    code = first_of(status, ("code", "status_code"))
    message = first_of(status, ("message", "description")) or raw.get("status_message")
    thrown = next((said.get("exception.message") for name, said in events if name == "exception"), None)
    failed = code == 2 or str(code).upper().endswith("ERROR") or attributes.get("error") is True
    return str(message or thrown or attributes.get("error.type") or "error") if failed else None


def _described(attributes: dict[str, Any], events: Sequence[tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    """What attributes and events say, as fields of `deltah.traces.spans.Span`."""
    given, said, answer = _events(attributes, events)
    attributes = {**given, **{name: _decoded(name, value) for name, value in attributes.items()}}
    operation, kind = attributes.get("gen_ai.operation.name"), str(first_of(attributes, _KIND) or "").lower()
    session = {"session": first_of(attributes, _FIELDS["session"])}
    if kind == "tool" or operation == "execute_tool" or first_of(attributes, _TOOL_FIELDS["name"][:2]) is not None:
        found = {field: first_of(attributes, names) for field, names in _TOOL_FIELDS.items()}
        return session | {"kind": "tool"} | {field: value for field, value in found.items() if value is not None}
    for key in ("gen_ai.input.messages", "gen_ai.output.messages"):
        if isinstance(value := json_value(attributes.get(key)), str) and value.startswith(("[{", "[ {")):
            raise DataError(f"attribute {key}: cut off in the middle; raise OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT")
    output = answer or _output(attributes)
    is_model = kind in ("llm", "generation", "chat_model") or "llm.request.type" in attributes
    if not attributes.get(_OPENINFERENCE):
        is_model |= operation in ("chat", "text_completion", "generate_content", "completion", "invoke_agent")
        is_model |= not kind and output is not None and "output.value" not in attributes  # the Vercel AI SDK's
    if not is_model:
        return session
    system = json_value(attributes.get("gen_ai.system_instructions"))
    asked = _first_unflattened(attributes, _INPUT)
    history = [{"role": "system", "content": system}] if system else []
    known = {**mapping(attributes.get("llm.invocation_parameters")), **attributes}
    return {field: first_of(known, names) for field, names in _FIELDS.items()} | {
        "kind": "llm",
        "input": [*history, said if asked is None else asked],
        "output": output,
    }


def _events(
    attributes: Mapping[str, Any], events: Sequence[tuple[Any, dict[str, Any]]]
) -> tuple[dict[str, Any], Any, Any]:
    """What events say: further attributes, messages, and the answer."""
    said, given, answer = list[dict[str, Any]](), dict[str, Any](), None
    logged = [(event.get("event.name"), dict(event)) for event in objects(json_value(attributes.get("events")))]
    for name, fields in (*events, *logged):  # Logfire's are an attribute
        body = mapping(fields.get("gen_ai.event.content")) or fields
        body = {key: json_value(value) if key in ("message", "tool_calls") else value for key, value in body.items()}
        match = re.fullmatch(r"gen_ai\.(system|user|assistant|tool)\.message", str(name))
        if match is not None:
            said.append({"role": match[1], **body})
        elif name == "gen_ai.choice":
            answer = body["message"] | {"role": "assistant"} if isinstance(body.get("message"), dict) else body
        elif str(name).startswith("gen_ai."):
            given |= fields
    return given, said, answer


def _decoded(name: str, value: Any) -> Any:
    """A value; MLflow's are JSON, texts too."""
    try:
        return msgspec.json.decode(value) if name.startswith("mlflow.") and isinstance(value, str) else value
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return value


def _output(attributes: Mapping[str, Any]) -> Any:
    if (found := _first_unflattened(attributes, _OUTPUT)) is not None:
        return found[:1] if isinstance(found, list) and not attributes.get(_OPENINFERENCE) else found
    text, calls = attributes.get("ai.response.text"), json_value(attributes.get("ai.response.toolCalls"))
    return {"role": "assistant", "content": text, "tool_calls": calls} if text or calls else None


def _first_unflattened(fields: Mapping[str, Any], names: Sequence[str]) -> Any:
    """First value of these names, each whole or with its parts as fields of their own: `NAME.0.role`."""
    for name in names:
        start = f"{name}."
        inside = {key.removeprefix(start): fields[key] for key in fields if key.startswith(start)}
        value = json_value(fields[name]) if name in fields else _tree(inside) if inside else None
        if value is not None:
            return _undotted(value) if name.startswith("llm.") else value
    return None


def _undotted(value: Any) -> Any:
    """Messages whose fields have dotted names, as in a data frame of spans."""
    if isinstance(value, list):
        return [_undotted(item) for item in value]
    return _tree({name: _undotted(inner) for name, inner in value.items()}) if isinstance(value, dict) else value


def _tree(fields: Mapping[str, Any]) -> Any:
    """Nested objects for dotted names, where a name's own value comes first; where all names are numbers, a list."""
    inside = defaultdict[str, dict[str, Any]](dict)
    for name, value in fields.items():
        step, _, rest = name.partition(".")
        inside[step][rest] = value
    tree = {step: parts[""] if "" in parts else _tree(parts) for step, parts in inside.items()}
    return [tree[key] for key in sorted(tree, key=int)] if tree and all(map(str.isdecimal, tree)) else tree

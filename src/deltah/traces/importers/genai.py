"""Attributes of the conventions for generative AI, on the spans that `deltah.traces.importers.otel` reads.

Beside `gen_ai.*` and its older events, what OpenLLMetry, Logfire, Langfuse, MLflow, Google's ADK and the Vercel AI SDK
write instead.
Lost: token counts, settings of requests but the temperature.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from deltah.errors import DataError
from deltah.traces.importing import finite
from deltah.traces.parts import first_of, json_value
from deltah.traces.wrapping import unflattened

_MODEL_RUNS: Final = ("chat", "text_completion", "generate_content", "completion", "invoke_agent")
_MODEL_KINDS: Final = ("llm", "generation", "chat_model")
_KIND: Final = ("traceloop.span.kind", "langfuse.observation.type", "langsmith.span.kind", "mlflow.spanType")
_TOOL_NAME: Final = ("gen_ai.tool.name", "ai.toolCall.name", "traceloop.entity.name")
_CALL_ID: Final = ("gen_ai.tool.call.id", "ai.toolCall.id")
_ADK: Final = "gcp.vertex.agent"
_GIVEN: Final = ("traceloop.entity.input", "langfuse.observation.input", "mlflow.spanInputs", f"{_ADK}.llm_request")
_GOT: Final = ("traceloop.entity.output", "langfuse.observation.output", "mlflow.spanOutputs", f"{_ADK}.llm_response")
_ARGUMENTS: Final = (
    "gen_ai.tool.call.arguments",
    "tool_arguments",
    "ai.toolCall.args",
    f"{_ADK}.tool_call_args",
    *_GIVEN,
)
_RESULT: Final = ("gen_ai.tool.call.result", "tool_response", "ai.toolCall.result", f"{_ADK}.tool_response", *_GOT)
_INPUT: Final = ("gen_ai.input.messages", "gen_ai.prompt", "ai.prompt.messages", *_GIVEN)
_OUTPUT: Final = ("gen_ai.output.messages", "gen_ai.completion", *_GOT)
_MODEL: Final = ("gen_ai.response.model", "gen_ai.request.model", "ai.model.id", "langfuse.observation.model.name")
_SESSION: Final = ("gen_ai.conversation.id", "session.id", "langfuse.session.id")


def described(attributes: dict[str, Any], events: Sequence[tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    """What attributes and events say, as fields of `deltah.traces.spans.Span`."""
    logged = json_value(attributes.get("events"))  # Logfire's
    listed = [(e.get("event.name"), e) for e in logged if isinstance(e, dict)] if isinstance(logged, list) else []
    said, given, answer = [], dict[str, Any](), None
    for name, fields in (*events, *listed):
        body = json_value(fields.get("gen_ai.event.content"))
        body = body if isinstance(body, dict) else fields
        body = {key: json_value(value) if key in ("message", "tool_calls") else value for key, value in body.items()}
        match = re.fullmatch(r"gen_ai\.(system|user|assistant|tool)\.message", str(name))
        if match is not None:
            said.append({"role": match[1], **body})
        elif name == "gen_ai.choice":
            answer = body["message"] | {"role": "assistant"} if isinstance(body.get("message"), dict) else body
        elif str(name).startswith("gen_ai."):
            given |= fields
    attributes = {**given, **{name: _decoded(name, value) for name, value in attributes.items()}}
    operation, kind = attributes.get("gen_ai.operation.name"), str(first_of(attributes, _KIND) or "").lower()
    common = {"session": first_of(attributes, _SESSION)}
    name = first_of(attributes, _TOOL_NAME[:2])
    if name is not None or operation == "execute_tool" or kind == "tool":
        name = first_of(attributes, _TOOL_NAME)
        values = {"input": first_of(attributes, _ARGUMENTS), "output": first_of(attributes, _RESULT)}
        named = {} if name is None else {"name": str(name)}
        return common | named | values | {"kind": "tool", "call_id": first_of(attributes, _CALL_ID)}
    for key in (*_INPUT[:1], *_OUTPUT[:1]):
        if isinstance(value := json_value(attributes.get(key)), str) and value.startswith(("[{", "[ {")):
            raise DataError(f"attribute {key}: cut off in the middle; raise OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT")
    output = answer or _output(attributes)
    asked = next((found for name in _INPUT if (found := unflattened(attributes, name)) is not None), said)
    is_model = kind in _MODEL_KINDS or operation in _MODEL_RUNS or "llm.request.type" in attributes
    if not is_model and (kind or output is None):  # the Vercel AI SDK names no kind
        return common
    system = json_value(attributes.get("gen_ai.system_instructions"))
    first = [] if not system else [{"role": "system", "content": system}]
    return common | {
        "kind": "llm",
        "input": [*first, asked],
        "output": output,
        "model": first_of(attributes, _MODEL),
        "temperature": finite(attributes.get("gen_ai.request.temperature")),
    }


def _decoded(name: str, value: Any) -> Any:
    """A value; MLflow's are JSON, texts too."""
    try:
        return msgspec.json.decode(value) if name.startswith("mlflow.") and isinstance(value, str) else value
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return value


def _output(attributes: Mapping[str, Any]) -> Any:
    for name in _OUTPUT:
        if (found := unflattened(attributes, name)) is not None:
            return found[:1] if isinstance(found, list) else found
    text, calls = attributes.get("ai.response.text"), json_value(attributes.get("ai.response.toolCalls"))
    return {"role": "assistant", "content": text, "tool_calls": calls} if text or calls else None

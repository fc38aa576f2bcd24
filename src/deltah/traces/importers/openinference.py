"""Attributes of OpenInference, on the spans that `deltah.traces.importers.otel` reads.

Lost: documents of retrievers, embeddings, prompts with their variables, token counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from deltah.traces.importing import finite
from deltah.traces.parts import first_of, json_value
from deltah.traces.wrapping import tree_of, unflattened

KIND: Final = "openinference.span.kind"
"""Attribute that every span of OpenInference has."""


def described(attributes: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the attributes say, as fields of `deltah.traces.spans.Span`; None for other conventions."""
    kind = str(attributes.get(KIND) or "").upper()
    if not kind:
        return None
    common = {"session": first_of(attributes, ("session.id",))}
    if kind == "TOOL":
        name = first_of(attributes, ("tool.name",))
        named = {} if name is None else {"name": str(name)}
        values = {
            "input": first_of(attributes, ("input.value", "tool.parameters")),
            "output": attributes.get("output.value"),
            "call_id": first_of(attributes, ("tool_call.id", "tool.id")),
        }
        return common | named | values | {"kind": "tool"}
    if kind != "LLM":
        return common
    parameters = json_value(attributes.get("llm.invocation_parameters"))
    said, answer = (_undotted(unflattened(attributes, f"llm.{way}_messages")) for way in ("input", "output"))
    return common | {
        "kind": "llm",
        "input": json_value(attributes.get("input.value")) if said is None else said,
        "output": json_value(attributes.get("output.value")) if answer is None else answer,
        "model": first_of(attributes, ("llm.model_name",)),
        "temperature": finite(parameters.get("temperature")) if isinstance(parameters, dict) else None,
        "cost": finite(attributes.get("llm.cost.total")),
    }


def _undotted(value: Any) -> Any:
    """Messages whose fields have dotted names, as in a data frame of spans."""
    if isinstance(value, list):
        return [_undotted(item) for item in value]
    return tree_of({name: _undotted(inner) for name, inner in value.items()}) if isinstance(value, dict) else value

"""Importer for ATIF 1.x, the Agent Trajectory Interchange Format of Harbor (`trajectory.json`).

Lost: log-probabilities, which have neither alternatives nor texts, and token ids; images; the times of tools. Mapping:
docs/formats/atif.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from deltah.core.types import Trajectory
from deltah.errors import DataError
from deltah.traces.conversation import COST, Conversation, Facts, LoggedMessage, to_trajectory
from deltah.traces.importing import IMPORTERS, RecordContext, finite, outcome_of, scalars, unfit_outcome
from deltah.traces.openai_schema import Message
from deltah.traces.parts import objects, result_text, to_messages

_VERSION: Final = "ATIF-v1."


@IMPORTERS.register("atif", meaning="ATIF 1.x, trajectory of Harbor", fields=("schema_version", "steps"))
def read(record: dict[str, Any], context: RecordContext) -> tuple[Trajectory, ...]:
    """Read a trajectory and those of its subagents."""
    return (*_trajectories(record, context.default_id, context),)


def _trajectories(record: Mapping[str, Any], default_id: str, context: RecordContext) -> Iterator[Trajectory]:
    version = record.get("schema_version")
    if not str(version).startswith(_VERSION):
        raise DataError(f"field schema_version: {version!r}; this release of deltah reads {_VERSION}x")
    name = str(record.get("trajectory_id") or record.get("session_id") or default_id)
    messages = [message for step in objects(record.get("steps")) for message in _messages(step)]
    if not any(one.message.role == "assistant" for one in messages):
        raise DataError("field steps: no step of source 'agent'; there is nothing to measure")
    yield to_trajectory(Conversation(messages, _facts(record, name), context.where), context.vocab_size)
    for i, subagent in enumerate(objects(record.get("subagent_trajectories")), start=1):
        yield from _trajectories(subagent, f"{name}/subagent-{i}", context)


def _messages(step: Mapping[str, Any]) -> Iterator[LoggedMessage]:
    """The message of a step, then the results of its calls; what was copied from another trajectory is context."""
    copied, source = step.get("is_copied_context") is True, str(step.get("source"))
    calls = [
        {"id": call.get("tool_call_id"), "name": call.get("function_name"), "arguments": call.get("arguments")}
        for call in objects(step.get("tool_calls"))
    ]
    said = {"role": "assistant" if source == "agent" else source, "content": step.get("message"), "tool_calls": calls}
    for message in to_messages(said | {"reasoning_content": step.get("reasoning_content")}):
        yield LoggedMessage(message, context=copied)
    for result in objects(_of(step, "observation").get("results")):
        content, id = result.get("content"), result.get("source_call_id")
        told = result.get("subagent_trajectory_ref") if content is None else content
        role = "tool" if calls else "user"  # of a step without calls it is what the environment says
        message = Message(role=role, tool_call_id=id if isinstance(id, str) else None, content=result_text(told))
        yield LoggedMessage(message, context=copied)


def _facts(record: Mapping[str, Any], name: str) -> Facts:
    steps, agent = objects(record.get("steps")), _of(record, "agent")
    models = (one.get("model_name") for one in (agent, *steps))
    reward = _of(record, "extra").get("reward")
    costs = [cost for step in steps if (cost := finite(_of(step, "metrics").get("cost_usd"))) is not None]
    cost = sum(costs) if costs else None
    known = {"schema_version": record["schema_version"], "agent": agent.get("name"), COST: cost}
    stated = {k: v for k, v in (known | dict(_of(record, "final_metrics"))).items() if v is not None}
    return Facts(
        id=name,
        model=next((model for model in models if isinstance(model, str) and model), None),
        outcome=outcome_of(reward),
        metadata=scalars(stated) | unfit_outcome(reward),
    )


def _of(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The object of that name; an empty one where there is none."""
    inner = fields.get(name)
    return inner if isinstance(inner, Mapping) else {}

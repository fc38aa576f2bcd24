"""Importer for ATIF 1.x, the Agent Trajectory Interchange Format of Harbor (`trajectory.json`).

Lost: log-probabilities, which have neither alternatives nor texts, and token ids; images; the times of tools. Mapping:
docs/formats/atif.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from deltah.core.types import Trajectory
from deltah.errors import DataError
from deltah.traces.conversation import COST, Conversation, Facts, LoggedMessage, to_trajectory
from deltah.traces.importing import IMPORTERS, RecordContext, finite, inside, outcome_of, scalars, unfit_outcome
from deltah.traces.openai_schema import Message
from deltah.traces.parts import first_of, objects, result_text, to_messages


@IMPORTERS.register("atif", meaning="ATIF 1.x, trajectory of Harbor", fields=("schema_version", "steps"))
def read(record: dict[str, Any], context: RecordContext) -> tuple[Trajectory, ...]:
    """Read a trajectory and those of its subagents."""
    return (*_trajectories(record, context.default_id, context),)


def _trajectories(record: Mapping[str, Any], default_id: str, context: RecordContext) -> Iterator[Trajectory]:
    version, steps = record.get("schema_version"), objects(record.get("steps"))
    if not str(version).startswith("ATIF-v1."):
        raise DataError(f"field schema_version: {version!r}; this release of deltah reads ATIF-v1.x")
    messages = [message for step in steps for message in _messages(step)]
    if not any(one.message.role == "assistant" for one in messages):
        raise DataError("field steps: no step of source 'agent'; there is nothing to measure")
    name = str(record.get("trajectory_id") or record.get("session_id") or default_id)
    reward = inside(record, "extra", "reward")
    costs = [cost for step in steps if (cost := finite(inside(step, "metrics", "cost_usd"))) is not None]
    models = (inside(record, "agent", "model_name"), *(step.get("model_name") for step in steps))
    known = {"schema_version": version, "agent": inside(record, "agent", "name"), COST: sum(costs) if costs else None}
    known |= totals if isinstance(totals := record.get("final_metrics"), Mapping) else {}
    facts = Facts(
        id=name,
        model=next((model for model in models if isinstance(model, str) and model), None),
        outcome=outcome_of(reward),
        metadata=scalars({k: v for k, v in known.items() if v is not None}) | unfit_outcome(reward),
    )
    yield to_trajectory(Conversation(messages, facts, context.where), context.vocab_size)
    for i, subagent in enumerate(objects(record.get("subagent_trajectories")), start=1):
        yield from _trajectories(subagent, f"{name}/subagent-{i}", context)


def _messages(step: Mapping[str, Any]) -> Iterator[LoggedMessage]:
    """The message of a step, then the results of its calls; what was copied from another trajectory is context."""
    copied, source = step.get("is_copied_context") is True, str(step.get("source"))
    calls = [{**call, "name": call.get("function_name")} for call in objects(step.get("tool_calls"))]
    said = {"role": "assistant" if source == "agent" else source, "content": step.get("message"), "tool_calls": calls}
    for message in to_messages(said | {"reasoning_content": step.get("reasoning_content")}):
        yield LoggedMessage(message, context=copied)
    for result in objects(inside(step, "observation", "results")):
        told, id = first_of(result, ("content", "subagent_trajectory_ref")), result.get("source_call_id")
        role = "tool" if calls else "user"  # of a step without calls it is what the environment says
        message = Message(role=role, tool_call_id=id if isinstance(id, str) else None, content=result_text(told))
        yield LoggedMessage(message, context=copied)

"""Importer for ATIF 1.x, the Agent Trajectory Interchange Format of Harbor (`trajectory.json`).

Lost: log-probabilities, which have neither alternatives nor texts, and token ids; images; the times of tools. Mapping:
docs/formats/atif.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from deltah.core.types import Scalar, Trajectory
from deltah.errors import DataError
from deltah.traces.conversation import COST, Conversation, Facts, LoggedMessage, to_trajectory
from deltah.traces.importing import IMPORTERS, RecordContext, finite, outcome_of, scalars, unfit_outcome
from deltah.traces.openai_schema import FunctionCall, Message, MessageToolCall

_VERSION: Final = "ATIF-v1."


class Call(msgspec.Struct):
    """One tool call."""

    tool_call_id: str | None = None
    function_name: str | None = None
    arguments: Any = None


class Result(msgspec.Struct):
    """What one call, or the environment, gave back."""

    source_call_id: str | None = None
    content: Any = None
    subagent_trajectory_ref: Any = None


class Observation(msgspec.Struct):
    """Results of a step."""

    results: list[Result] = []


class Step(msgspec.Struct):
    """One message, with its calls and their results."""

    source: str
    message: Any = None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None
    observation: Observation | None = None
    model_name: str | None = None
    metrics: Any = None
    is_copied_context: bool | None = None


class Atif(msgspec.Struct):
    """A trajectory; those of its subagents may stand in it."""

    schema_version: str
    steps: list[Step]
    session_id: str | None = None
    trajectory_id: str | None = None
    agent: Any = None
    final_metrics: Any = None
    extra: Any = None
    subagent_trajectories: list[Atif] | None = None


@IMPORTERS.register("atif", meaning="ATIF 1.x, trajectory of Harbor", fields=("schema_version", "steps"), schema=Atif)
def read(record: Atif, context: RecordContext) -> tuple[Trajectory, ...]:
    """Read a trajectory and those of its subagents."""
    return (*_trajectories(record, context.default_id, context),)


def _trajectories(record: Atif, default_id: str, context: RecordContext) -> Iterator[Trajectory]:
    if not record.schema_version.startswith(_VERSION):
        raise DataError(f"field schema_version: {record.schema_version!r}; this release of deltah reads {_VERSION}x")
    name = record.trajectory_id or record.session_id or default_id
    messages = [message for step in record.steps for message in _messages(step)]
    if not any(one.message.role == "assistant" for one in messages):
        raise DataError("field steps: no step of source 'agent'; there is nothing to measure")
    conversation = Conversation(messages, _facts(record, name), context.where)
    yield to_trajectory(conversation, context.vocab_size)
    for i, subagent in enumerate(record.subagent_trajectories or (), start=1):
        yield from _trajectories(subagent, f"{name}/subagent-{i}", context)


def _messages(step: Step) -> Iterator[LoggedMessage]:
    """The message of a step, then the results of its calls; what was copied from another trajectory is context."""
    copied = bool(step.is_copied_context)
    calls = [
        MessageToolCall(id=call.tool_call_id, function=FunctionCall(call.function_name, call.arguments))
        for call in step.tool_calls or ()
    ]
    said = Message(
        role="assistant" if step.source == "agent" else step.source,
        content=step.message,
        reasoning_content=step.reasoning_content,
        tool_calls=calls or None,
    )
    yield LoggedMessage(said, context=copied)
    for result in step.observation.results if step.observation is not None else ():
        delegated = msgspec.json.encode(result.subagent_trajectory_ref or "").decode()
        content = delegated if result.content is None else result.content
        role = "tool" if calls else "user"  # of a step without calls it is what the environment says
        yield LoggedMessage(Message(role=role, tool_call_id=result.source_call_id, content=content), context=copied)


def _facts(record: Atif, name: str) -> Facts:
    agent = record.agent if isinstance(record.agent, dict) else {}
    model = agent.get("model_name") or next((step.model_name for step in record.steps if step.model_name), None)
    extra = record.extra if isinstance(record.extra, dict) else {}
    reward = finite(extra.get("reward"))
    totals = record.final_metrics if isinstance(record.final_metrics, dict) else {}
    known = {"schema_version": record.schema_version, "agent": agent.get("name"), COST: _cost(record.steps)}
    metadata: dict[str, Scalar] = {k: v for k, v in scalars(known | totals).items() if v is not None}
    return Facts(
        id=name,
        session=record.session_id,
        model=model if isinstance(model, str) else None,
        outcome=outcome_of(reward),
        metadata=metadata | unfit_outcome(reward),
    )


def _cost(steps: list[Step]) -> float | None:
    """Dollars of all steps; None where none states it."""
    stated = [finite(step.metrics.get("cost_usd")) for step in steps if isinstance(step.metrics, dict)]
    known = [cost for cost in stated if cost is not None]
    return sum(known) if known else None

"""Importer for the result rows of verifiers 0.1 and 0.2 (`results.jsonl`): one rollout, without entropies.

Lost: tokens and log-probabilities, and the times of tools. Mapping: docs/formats/verifiers-results.md.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from deltah.core.types import Scalar, Trajectory
from deltah.traces.chattext import Prompt, completion_messages, link_results, prompt_messages, text_trajectory
from deltah.traces.conversation import Facts
from deltah.traces.importing import (
    IMPORTERS,
    RecordContext,
    golden_answers,
    outcome_of,
    scalars,
    unfit_outcome,
)
from deltah.traces.openai_schema import Message
from deltah.traces.parts import json_value, to_messages

_NOT_METADATA: Final = frozenset({"prompt", "completion", "answer", "reward"})


class ResultRow(msgspec.Struct):
    """What every version writes; metrics and columns of the environment stand beside it."""

    prompt: str | list[dict[str, Any]] | None
    completion: str | list[dict[str, Any]] | None
    example_id: Any = None
    answer: Any = None
    is_truncated: Any = None


@IMPORTERS.register(
    "verifiers-results",
    meaning="Result row of verifiers 0.1 and 0.2",
    fields=("prompt", "completion", "reward", ("example_id", "task", "num_turns", "timing", "generation_ms", "info")),
)
def read(record: dict[str, Any], context: RecordContext) -> Trajectory:
    """Read one row."""
    row = msgspec.convert(record, ResultRow)
    prompt = _prompt(row.prompt)
    reward = record["reward"]
    facts = Facts(
        id=context.default_id,
        group_id=None if row.example_id is None else str(row.example_id),
        question=prompt.question,
        golden_answers=golden_answers(row.answer),
        outcome=outcome_of(reward),
        finish_reason="length" if row.is_truncated is True else None,
        metadata=_metadata(record) | unfit_outcome(reward),
    )
    return text_trajectory(prompt.messages, _completion(row.completion, prompt.opening), facts)


def _prompt(prompt: str | list[dict[str, Any]] | None) -> Prompt:
    return Prompt(_typed(prompt), "") if isinstance(prompt, list) else prompt_messages(prompt or "")


def _completion(completion: str | list[dict[str, Any]] | None, opening: str) -> list[Message]:
    if isinstance(completion, list):
        return link_results(_typed(completion))
    return completion_messages(opening + (completion or ""))


def _typed(messages: list[dict[str, Any]]) -> list[Message]:
    """Messages whose calls may be JSON kept as text."""
    listed: list[Any] = [message.get("tool_calls") for message in messages]
    opened = [[*map(json_value, calls)] if isinstance(calls, list) else [] for calls in listed]
    return to_messages([m | {"tool_calls": calls} for m, calls in zip(messages, opened, strict=True)])


def _metadata(record: dict[str, Any]) -> dict[str, Scalar]:
    metrics = record.get("metrics")
    return scalars(record, leave_out=_NOT_METADATA) | (scalars(metrics) if isinstance(metrics, dict) else {})

"""Importer for the result rows of verifiers 0.1 and 0.2 (`results.jsonl`): one rollout, without entropies.

Lost: tokens and log-probabilities, and the times of tools. Mapping: docs/formats/verifiers-results.md.
"""

from __future__ import annotations

from typing import Any

import msgspec

from deltah.core.types import Trajectory
from deltah.traces.chattext import Prompt, completion_messages, link_results, prompt_messages, text_trajectory
from deltah.traces.conversation import Facts
from deltah.traces.importing import (
    IMPORTERS,
    RecordContext,
    finite,
    golden_answers,
    outcome_of,
    scalars,
    unfit_outcome,
)
from deltah.traces.openai_schema import Message
from deltah.traces.parts import json_value, to_messages


class ResultRow(msgspec.Struct):
    """What every version writes; metrics and columns of the environment stand beside it."""

    prompt: str | list[dict[str, Any]] | None
    completion: str | list[dict[str, Any]] | None
    metrics: Any = None


@IMPORTERS.register(
    "verifiers-results",
    meaning="Result row of verifiers 0.1 and 0.2",
    fields=("prompt", "completion", "reward", ("example_id", "task", "num_turns", "timing", "generation_ms", "info")),
)
def read(record: dict[str, Any], context: RecordContext) -> Trajectory:
    """Read one row."""
    row, reward, example = msgspec.convert(record, ResultRow), finite(record["reward"]), record.get("example_id")
    prompt = Prompt(_typed(row.prompt), "") if isinstance(row.prompt, list) else prompt_messages(row.prompt or "")
    if isinstance(row.completion, list):
        said = link_results(_typed(row.completion))
    else:
        said = completion_messages(prompt.opening + (row.completion or ""))
    facts = Facts(
        id=context.default_id,
        group_id=None if example is None else str(example),
        question=prompt.question,
        golden_answers=golden_answers(record.get("answer")),
        outcome=outcome_of(reward),
        finish_reason="length" if record.get("is_truncated") is True else None,
        metadata=scalars(record, leave_out=frozenset({"prompt", "completion", "answer", "reward"}))
        | (scalars(row.metrics) if isinstance(row.metrics, dict) else {})
        | unfit_outcome(reward),
    )
    return text_trajectory(prompt.messages, said, facts)


def _typed(messages: list[dict[str, Any]]) -> list[Message]:
    """Messages whose calls may be JSON kept as text."""
    for message in messages:
        if isinstance(calls := message.get("tool_calls"), list):
            message["tool_calls"] = [*map(json_value, calls)]
    return to_messages(messages)

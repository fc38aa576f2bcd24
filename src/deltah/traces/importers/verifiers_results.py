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
    decode_line,
    finite,
    golden_answers,
    outcome_of,
    scalars,
    unfit_outcome,
)
from deltah.traces.openai_schema import Message, MessageToolCall

_NOT_METADATA: Final = frozenset({"prompt", "completion", "answer", "reward"})
_ANY: Final = msgspec.json.Decoder(Any)


class RowMessage(Message):
    """A message whose calls may be JSON kept as text."""

    tool_calls: list[Any] | None = None


class ResultRow(msgspec.Struct):
    """What every version writes; metrics and columns of the environment stand beside it."""

    prompt: str | list[RowMessage] | None
    completion: str | list[RowMessage] | None
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
    reward = finite(record["reward"])
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


def _prompt(prompt: str | list[RowMessage] | None) -> Prompt:
    return Prompt(_typed(prompt), "") if isinstance(prompt, list) else prompt_messages(prompt or "")


def _completion(completion: str | list[RowMessage] | None, opening: str) -> list[Message]:
    if isinstance(completion, list):
        return link_results(_typed(completion))
    return completion_messages(opening + (completion or ""))


def _typed(messages: list[RowMessage]) -> list[Message]:
    for message in messages:
        calls = [_opened(call) for call in message.tool_calls or ()]
        message.tool_calls = msgspec.convert(calls, list[MessageToolCall]) or None
    return [*messages]


def _opened(call: Any) -> Any:
    call = decode_line(call.encode(), _ANY) if isinstance(call, str) else call
    flat = isinstance(call, dict) and "function" not in call and "name" in call
    return {"id": call.get("id"), "function": call} if flat else call


def _metadata(record: dict[str, Any]) -> dict[str, Scalar]:
    metrics = record.get("metrics")
    return scalars(record, leave_out=_NOT_METADATA) | (scalars(metrics) if isinstance(metrics, dict) else {})

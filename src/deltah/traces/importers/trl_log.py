"""Importer for the completion logs of TRL: one row, one trajectory, without entropies.

docs/formats.md states the mapping of every column and what is lost. Source: `GRPOTrainer(log_completions=True)` of
TRL 1.16.0, `trainer/grpo_trainer.py`. `deltah.traces.files` turns its Parquet files into JSON records.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from deltah.core.types import Trajectory
from deltah.traces.chattext import (
    Prompt,
    assistant_message,
    completion_messages,
    link_results,
    prompt_messages,
    text_trajectory,
)
from deltah.traces.conversation import Facts, message_text
from deltah.traces.importing import IMPORTERS, RecordContext, golden_answers, outcome_of, prompt_group, scalars
from deltah.traces.openai_schema import Message

_ANSWERS = ("golden_answers", "answer", "solution", "ground_truth")
_OUTCOMES = ("outcome", "accuracy_reward", "reasoning_accuracy_reward")
_WRITTEN_ALWAYS = frozenset({"step", "prompt", "completion", "advantage"})


class CompletionRow(msgspec.Struct):
    """What TRL writes in every row; columns of rewards and extras stand beside it."""

    prompt: str | list[Message]
    completion: str | list[Message]
    step: int | None = None


@IMPORTERS.register("trl", meaning="Completion log of TRL", fields=("prompt", "completion"))
def read(record: dict[str, Any], context: RecordContext) -> Trajectory:
    """Read one row."""
    row = msgspec.convert(record, CompletionRow)
    prompt = prompt_messages(row.prompt) if isinstance(row.prompt, str) else Prompt([*row.prompt], "")
    others = {name: value for name, value in record.items() if name not in _WRITTEN_ALWAYS}
    facts = Facts(
        id=context.default_id,
        group_id=prompt_group(row.step, record["prompt"]),
        question=prompt.question,
        golden_answers=golden_answers(next((others[n] for n in _ANSWERS if n in others), None)),
        outcome=_outcome(others),
        metadata=scalars(record, leave_out=frozenset({"prompt", "completion"})),
    )
    if isinstance(row.completion, str):
        said = completion_messages(prompt.opening + row.completion)
    else:
        said = link_results([_turn(message) if message.role == "assistant" else message for message in row.completion])
    return text_trajectory(prompt.messages, said, facts)


def _turn(message: Message) -> Message:
    """Assistant message with the calls that TRL parsed, else with those in its text."""
    if not message.tool_calls:
        written = assistant_message(message_text(message.content))
        written.reasoning_content = message.reasoning_content or written.reasoning_content
        return written
    for call in message.tool_calls:
        if call.function is not None and isinstance(call.function.arguments, dict):
            # An argument is null only because another row has it.
            call.function.arguments = {name: v for name, v in call.function.arguments.items() if v is not None}
    return message


def _outcome(columns: Mapping[str, Any]) -> float | None:
    named = next((name for name in _OUTCOMES if name in columns), None)
    if named is not None:
        return outcome_of(columns[named])
    numbers = [v for v in columns.values() if v is None or (isinstance(v, int | float) and not isinstance(v, bool))]
    return outcome_of(numbers[0]) if len(numbers) == 1 else None

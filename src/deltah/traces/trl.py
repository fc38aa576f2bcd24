"""Importer for the completion logs of TRL: one row, one trajectory. Nothing is measured on it.

Source: `GRPOTrainer(log_completions=True)` of TRL, written by TRL 1.16.0 and read in its `trainer/grpo_trainer.py`:
`<output_dir>/completions/completions_<step>.parquet`, one row a completion. `rows` turns such a file into JSON
records; rows that were exported as JSON lines are read as they are.

* `prompt`, `completion`: message lists, or, for plain-text data sets, text that is read by `deltah.traces.chattext`.
* calls: `tool_calls` of the messages, or calls written in their text. Parquet has one set of argument names for a
  whole file and fills up with null: null arguments are dropped, so one that the model did write as null is lost.
* results: messages of role "tool", matched within their turn by `name`, then in order: TRL appends the results of
  async tools after those of the others. status: TRL writes a failed call as {'error': ...}.
* outcome: the column `outcome`, `accuracy_reward` or `reasoning_accuracy_reward` (TRL's own graders), else the only
  numeric column beside `step` and `advantage`; if in [0, 1]. With several reward functions and none of these names
  there is no outcome: rename the column of the grader to `outcome`.
* golden_answers: `golden_answers`, `answer`, `solution` or `ground_truth`, where the reward function logged one
  (`log_extra`).
* id: the row's place. group_id: step and prompt. metadata: `step`, `advantage`, and every other flat column.

Lost: tokens and log-probabilities, so the estimator is none and `spans` approximate; times; which completions were
cut at their length limit; the results that TRL itself drops when they would exceed it (their calls are unanswered).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from deltah.core.types import Trajectory
from deltah.errors import DataError, missing_dependency
from deltah.traces.chatlog import ChatLine, Message
from deltah.traces.chattext import (
    CONTEXT_ROLE,
    NamedMessage,
    assistant_message,
    completion_messages,
    link_results,
    prompt_messages,
    text_trajectory,
)
from deltah.traces.conversation import message_text
from deltah.traces.decode import decode_line
from deltah.traces.fields import Member, golden_answers, prompt_group, scalars, unit

OUTCOME_COLUMNS = ("outcome", "accuracy_reward", "reasoning_accuracy_reward")
"""Columns taken for the grader's score, the first that is there."""

ANSWER_COLUMNS = ("golden_answers", "answer", "solution", "ground_truth")

_WRITTEN_ALWAYS = frozenset({"step", "prompt", "completion", "advantage"})
_BATCH_ROWS = 64


class CompletionRow(msgspec.Struct):
    """What TRL writes in every row; columns of rewards and extras stand beside it."""

    prompt: str | list[NamedMessage]
    completion: str | list[NamedMessage]
    step: int | None = None


_DECODER = msgspec.json.Decoder(CompletionRow)
_ALL_COLUMNS: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])


def decode(record: bytes, *, default_id: str, vocab_size: int | None = None) -> Trajectory:
    """Read one row.

    Args:
        record: JSON text, of `rows` or of a JSON line.
        default_id: Id of the trajectory, as rows have none.
        vocab_size: Not needed: nothing is measured.

    Raises:
        DataError: if the row is not of this format.
    """
    del vocab_size
    row, columns = decode_line(record, _DECODER), decode_line(record, _ALL_COLUMNS)
    prompt, opening = _prompt(row.prompt)
    others = {name: value for name, value in columns.items() if name not in _WRITTEN_ALWAYS}
    question = next((message_text(m.content) for m in reversed(prompt) if m.role == "user"), None)
    line = ChatLine(
        messages=[*prompt, *_completion(row.completion, opening)],
        id=default_id,
        group_id=prompt_group(row.step, columns["prompt"]),
        question=question,
        golden_answers=list(golden_answers(next((others[n] for n in ANSWER_COLUMNS if n in others), None))),
        outcome=_outcome(others),
        metadata=scalars(columns, leave_out=frozenset({"prompt", "completion"})),
    )
    return text_trajectory(line)


def rows(path: str | os.PathLike[str]) -> Iterator[Member]:
    """Rows of a Parquet file as JSON records, in constant memory.

    A file that breaks in the middle ends in one `Member` with `damage`.

    Raises:
        DataError: if the file cannot be opened.
        MissingDependencyError: if pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise missing_dependency("pyarrow", extra="train", purpose="Reading a Parquet file") from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for row in batch.to_pylist():
                    yield Member(f"row {number}", json.dumps(row, default=str).encode())
                    number += 1
    except FileNotFoundError as error:
        raise DataError(f"cannot read {os.fspath(path)}: {error.strerror or error}; check the path") from error
    except (pyarrow.ArrowException, OSError) as error:
        yield Member(f"row {number}", b"", f"the Parquet file is damaged ({error}); rows from here on are lost")


def _prompt(prompt: str | list[NamedMessage]) -> tuple[list[Message], str]:
    """Messages of which none is a turn, and what the template wrote into the first one."""
    if isinstance(prompt, str):
        return prompt_messages(prompt)
    roles = {"assistant": CONTEXT_ROLE, "tool": CONTEXT_ROLE}
    return [Message(role=roles.get(m.role, m.role), content=m.content) for m in prompt], ""


def _completion(completion: str | list[NamedMessage], opening: str) -> list[Message]:
    if isinstance(completion, str):
        return completion_messages(opening + completion)
    return link_results([_turn(message) if message.role == "assistant" else message for message in completion])


def _turn(message: NamedMessage) -> Message:
    """Assistant message with the calls that TRL parsed, else with those in its text."""
    if not message.tool_calls:
        written = assistant_message(message_text(message.content))
        thought = message.reasoning_content or written.reasoning_content
        return msgspec.structs.replace(written, reasoning_content=thought)
    calls = [
        msgspec.structs.replace(
            call,
            function=call.function
            and msgspec.structs.replace(call.function, arguments=_given(call.function.arguments)),
        )
        for call in message.tool_calls
    ]
    return msgspec.structs.replace(message, tool_calls=calls)


def _given(arguments: Any) -> Any:
    """Arguments without those that are null only because another row has them."""
    if not isinstance(arguments, Mapping):
        return arguments
    return {name: value for name, value in arguments.items() if value is not None}


def _outcome(columns: Mapping[str, Any]) -> float | None:
    named = next((name for name in OUTCOME_COLUMNS if name in columns), None)
    if named is not None:
        return unit(columns[named])
    numbers = [v for v in columns.values() if v is None or (isinstance(v, int | float) and not isinstance(v, bool))]
    return unit(numbers[0]) if len(numbers) == 1 else None

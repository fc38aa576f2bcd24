"""Importer for the rollout dumps of verl: one JSON line of text, one trajectory, without entropies.

docs/formats.md states the mapping of every field and what is lost. Source: `_dump_generations` of verl 0.4.0 to 0.9.0.
"""

from __future__ import annotations

from typing import Any

import msgspec

from deltah.core.types import Trajectory
from deltah.traces.chattext import completion_messages, prompt_messages, text_trajectory
from deltah.traces.conversation import Facts
from deltah.traces.importing import (
    IMPORTERS,
    RecordContext,
    golden_answers,
    outcome_of,
    prompt_group,
    scalars,
    unfit_outcome,
)


class DumpRow(msgspec.Struct):
    """What every version writes; the reward function's own columns stand beside it."""

    input: str
    output: str
    score: float | bool | None
    step: int
    gts: Any = None
    acc: Any = None
    uid: Any = None
    request_id: Any = None


@IMPORTERS.register("verl", meaning="Rollout dump of verl", fields=("input", "output", "score", "step"))
def read(record: dict[str, Any], context: RecordContext) -> Trajectory:
    """Read one line of a dump."""
    row = msgspec.convert(record, DumpRow)
    prompt = prompt_messages(row.input)
    identifier, group = _identity(row, context.default_id)
    outcome = outcome_of(row.score) if outcome_of(row.acc) is None else outcome_of(row.acc)
    unfit = {} if outcome is not None else unfit_outcome(row.score)
    facts = Facts(
        id=identifier,
        group_id=group,
        question=prompt.question,
        golden_answers=golden_answers(row.gts),
        outcome=outcome,
        metadata=scalars(record, leave_out=frozenset({"input", "output", "gts"})) | unfit,
    )
    return text_trajectory(prompt.messages, completion_messages(prompt.opening + row.output), facts)


def _identity(row: DumpRow, default_id: str) -> tuple[str, str]:
    """Id and group of a row."""
    uid = "" if row.uid is None else str(row.uid)
    parts = uid.rsplit("_", 2)
    placed = len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit()
    identifier = uid if placed else str(default_id if row.request_id is None else row.request_id)
    return identifier, (parts[0] if placed else uid) or prompt_group(row.step, row.input)

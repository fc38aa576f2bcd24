"""Importer for the rollout dumps of verl: one JSON line of text, one trajectory. Nothing is measured on it.

Source: `_dump_generations` of verl, read in v0.4.0 to v0.9.0 and at commit 1dda039 (August 2026), in both trainers
(`trainer/ppo/ray_trainer.py` and `trainer/ppo/v1/trainer_base.py`): `<dir>/<step>.jsonl`, where <dir> is
`trainer.rollout_data_dir` or `trainer.validation_data_dir`.

* `input`, `output`: prompt and response, decoded with `skip_special_tokens=True`, so the template's markers are gone;
  turns, calls and results are recovered from what is left, by the rules of `deltah.traces.chattext`.
* question: the last user message of `input`. prediction: the visible text of the last turn.
* outcome: `acc` where the reward function gives it (verl's own core metric), else `score`, if in [0, 1]. Both stay in
  the metadata.
* golden_answers: `gts` (since v0.6.0): a text, a list, or an object with "target".
* id: `request_id`, or the v1 trainer's `uid`, which is <prompt>_<rollout>_<output>. group_id: the <prompt> of that
  `uid`, a `uid` of another form, else step and prompt text.
* metadata: `step`, and every flat value that the reward function returned (`reward_extra_info`).

Lost: tokens and log-probabilities, so the estimator is none and `spans` approximate; which tool answered, how long it
took; whether the response was cut at its length limit.
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


_NOT_METADATA = frozenset({"input", "output", "gts"})


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
        metadata=scalars(record, leave_out=_NOT_METADATA) | unfit,
    )
    return text_trajectory(prompt.messages, completion_messages(prompt.opening + row.output), facts)


def _identity(row: DumpRow, default_id: str) -> tuple[str, str]:
    """Id and group of a row."""
    uid = "" if row.uid is None else str(row.uid)
    parts = uid.rsplit("_", 2)
    placed = len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit()
    identifier = uid if placed else str(default_id if row.request_id is None else row.request_id)
    return identifier, (parts[0] if placed else uid) or prompt_group(row.step, row.input)

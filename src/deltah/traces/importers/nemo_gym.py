"""Importer for the rollouts of NeMo Gym (`rollouts.jsonl`): the items of OpenAI Responses, and a reward.

Lost: `generation_log_probs`, which have neither alternatives nor texts, and token ids. Mapping:
docs/formats/nemo-gym.md.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from deltah.traces.importers.openai_chat import read as read_chat
from deltah.traces.importers.responses import Body, Params, history_of, messages_of
from deltah.traces.importing import IMPORTERS, Imported, RecordContext, finite, golden_answers, scalars
from deltah.traces.openai_schema import ChatLine

_TASK, _ROLLOUT = "_ng_task_index", "_ng_rollout_index"
_ANSWERS: Final = ("golden_answers", "expected_answer", "answer")
_NOT_METADATA: Final = frozenset({"id", "reward"})


@IMPORTERS.register(
    "nemo-gym",
    meaning="Rollout of NeMo Gym",
    fields=("responses_create_params", "response"),
)
def read(record: dict[str, Any], context: RecordContext) -> Imported:
    """Read one rollout."""
    asked = msgspec.convert(record["responses_create_params"], Params)
    answered = msgspec.convert(record["response"], Body)
    task, rollout = record.get(_TASK), record.get(_ROLLOUT)
    chat = ChatLine(
        id=f"{task}/{rollout}" if task is not None and rollout is not None else None,
        group_id=None if task is None else str(task),
        messages=[*history_of(asked), *messages_of(answered.output)],
        model=answered.model or asked.model,
        temperature=answered.temperature if asked.temperature is None else asked.temperature,
        golden_answers=[*golden_answers(next((record[name] for name in _ANSWERS if name in record), None))] or None,
        score=finite(record.get("reward")),
        tools=asked.tools,
        metadata=scalars(record, leave_out=_NOT_METADATA),
    )
    return read_chat(chat, context)

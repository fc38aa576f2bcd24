"""Importer for session logs of Codex (`rollout-*.jsonl`); the mapping is in docs/formats/sessions.md.

Lost: what a compaction removed, hidden reasoning, times of tools, what only the screen showed (`event_msg`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from deltah.traces.importing import IMPORTERS, RecordContext, epoch_seconds
from deltah.traces.spans import Span

_SIGN: Final = re.compile(rb'"type"\s*:\s*"(?:session_meta|response_item|turn_context|event_msg|compacted)"')


@IMPORTERS.register(
    "codex", title="Codex", meaning="Session log of Codex", fields=("timestamp", "type", "payload"), sign=_SIGN.search
)
def read(record: dict[str, Any], context: RecordContext) -> list[Span]:
    """Read one line: an item of a session, or what it says of the session."""
    payload, kind = record.get("payload"), record["type"]
    if not isinstance(payload, Mapping):
        return []
    session, model = payload.get("id"), payload.get("model")
    return [
        Span(
            trace=context.where.file,
            id=str(context.where.number),
            kind="said" if kind == "response_item" else "",
            started_at=epoch_seconds(record["timestamp"]),
            input=payload if kind == "response_item" else None,
            session=session if kind == "session_meta" and isinstance(session, str) else None,
            model=model if kind == "turn_context" and isinstance(model, str) else None,
        )
    ]

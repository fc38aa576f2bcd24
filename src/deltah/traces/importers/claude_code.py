"""Importer for session logs of Claude Code; the mapping is in docs/formats/sessions.md.

Lost: what a compaction removed, branches that a user left (they stand in the order of the log), times of tools.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from deltah.traces.importing import IMPORTERS, RecordContext, epoch_seconds, scalars
from deltah.traces.spans import Span

_SIGN: Final = re.compile(
    rb'"(?:parentUuid|leafUuid|isSnapshotUpdate)"\s*:|"type"\s*:\s*"(?:queue-operation|progress)"'
)


@IMPORTERS.register(
    "claude-code",
    title="Claude Code",
    meaning="Session log of Claude Code",
    fields=("type", ("uuid", "leafUuid", "snapshot", "sessionId")),
    sign=_SIGN.search,
)
def read(record: dict[str, Any], context: RecordContext) -> list[Span]:
    """Read one line: a message of a session, or nothing."""
    message, _ = record.get("message"), record["type"]
    if not isinstance(message, Mapping) or record.get("isMeta") is True:
        return []
    session, agent = str(record.get("sessionId") or context.where.file), record.get("agentId")
    # A sub-agent's messages stand among those of the session.
    side = f"/{agent or 'side'}" if record.get("isSidechain") is True else ""
    model = message.get("model")
    return [
        Span(
            trace=f"{session}{side}",
            id=str(record.get("uuid")),
            kind="said",
            call_id=str(message["id"]) if isinstance(message.get("id"), str) else None,
            started_at=epoch_seconds(record.get("timestamp")),
            input=message,
            model=model if isinstance(model, str) else None,
            metadata=scalars({"version": record.get("version")}),
        )
    ]

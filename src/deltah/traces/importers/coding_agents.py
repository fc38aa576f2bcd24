"""Importers for session logs of Claude Code and of Codex; the mapping is in docs/formats/sessions.md.

Lost: what a compaction removed, branches that a user left (they stand in the order of the log), times of tools, hidden
reasoning, what only the screen showed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from deltah.traces.importing import IMPORTERS, RecordContext
from deltah.traces.spans import Span


@IMPORTERS.register(
    "claude-code",
    title="Claude Code",
    meaning="Session log of Claude Code",
    fields=("type", ("uuid", "leafUuid", "snapshot", "sessionId")),
    sign=re.compile(
        rb'"(?:parentUuid|leafUuid|isSnapshotUpdate)"\s*:|"type"\s*:\s*"(?:queue-operation|progress)"'
    ).search,
)
def claude_code(record: dict[str, Any], context: RecordContext) -> list[Span]:
    """Read one line: a message of a session, or nothing; a sub-agent's messages stand among those of the session."""
    message, _ = record.get("message"), record["type"]
    if not isinstance(message, Mapping) or record.get("isMeta") is True:
        return []
    session = str(record.get("sessionId") or context.where.file)
    side = f"/{record.get('agentId') or 'side'}" if record.get("isSidechain") is True else ""
    return [
        Span(
            trace=f"{session}{side}",
            id=str(record.get("uuid")),
            kind="said",
            call_id=message.get("id"),
            started_at=record.get("timestamp"),
            input=message,
            model=message.get("model"),
        )
    ]


@IMPORTERS.register(
    "codex",
    title="Codex",
    meaning="Session log of Codex",
    fields=("timestamp", "type", "payload"),
    sign=re.compile(rb'"type"\s*:\s*"(?:session_meta|response_item|turn_context|event_msg|compacted)"').search,
)
def codex(record: dict[str, Any], context: RecordContext) -> list[Span]:
    """Read one line: an item of a session, or what it says of the session."""
    payload, kind = record.get("payload"), record["type"]
    if not isinstance(payload, Mapping):
        return []
    return [
        Span(
            trace=context.where.file,
            id=str(context.where.number),
            kind="said" if kind == "response_item" else "",
            started_at=record["timestamp"],
            input=payload,
            session=payload.get("id") if kind == "session_meta" else None,
            model=payload.get("model") if kind == "turn_context" else None,
        )
    ]

"""Importers for session logs of Claude Code and of Codex; the mapping is in docs/formats/sessions.md.

Lost: what a compaction removed, branches that a user left (they stand in the order of the log), times of tools, hidden
reasoning, what only the screen showed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from deltah.traces.importing import IMPORTERS, RecordContext
from deltah.traces.spans import Span

_CLAUDE: Final = re.compile(
    rb'"(?:parentUuid|leafUuid|isSnapshotUpdate)"\s*:|"type"\s*:\s*"(?:queue-operation|progress)"'
)
_CODEX: Final = re.compile(rb'"type"\s*:\s*"(?:session_meta|response_item|turn_context|event_msg|compacted)"')


@IMPORTERS.register(
    "claude-code",
    title="Claude Code",
    meaning="Session log of Claude Code",
    fields=("type", ("uuid", "leafUuid", "snapshot", "sessionId")),
    sign=_CLAUDE.search,
)
def claude_code(record: dict[str, Any], context: RecordContext) -> list[Span]:
    """Read one line: a message of a session, or nothing; a sub-agent's messages stand among those of the session."""
    message, _ = record.get("message"), record["type"]
    if not isinstance(message, Mapping) or record.get("isMeta") is True:
        return []
    trace, id, at = str(record.get("sessionId") or context.where.file), str(record.get("uuid")), record.get("timestamp")
    if record.get("isSidechain") is True:
        trace += f"/{record.get('agentId') or 'side'}"
    answer, model = message.get("id"), message.get("model")
    return [Span(trace=trace, id=id, kind="said", call_id=answer, started_at=at, input=message, model=model)]


@IMPORTERS.register(
    "codex",
    title="Codex",
    meaning="Session log of Codex",
    fields=("timestamp", "type", "payload"),
    sign=_CODEX.search,
)
def codex(record: dict[str, Any], context: RecordContext) -> list[Span]:
    """Read one line: an item of a session, or what it says of the session."""
    payload, kind = record.get("payload"), record["type"]
    if not isinstance(payload, Mapping):
        return []
    trace, id, at = context.where.file, str(context.where.number), record["timestamp"]
    if kind == "response_item":
        return [Span(trace=trace, id=id, kind="said", started_at=at, input=payload)]
    session = payload.get("id") if kind == "session_meta" else None
    model = payload.get("model") if kind == "turn_context" else None
    return [Span(trace=trace, id=id, started_at=at, session=session, model=model)]

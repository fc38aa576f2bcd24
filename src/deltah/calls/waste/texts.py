"""Text of a trajectory by who wrote it and when: user text, and what the policy wrote.

Keyed by turn, as `Segment.turn` counts: user text under the turn it precedes, policy text under the turn that wrote it.
"""

from __future__ import annotations

import re
from typing import Final

from deltah.core.types import SegmentKind, Trajectory

_WRITTEN: Final = (SegmentKind.REASONING, SegmentKind.CALL)
_TEMPLATE = re.compile(r"<[^<>]{0,40}>|\b(?:system|user|assistant|tool)\b|[^\w<]+|[_<]")

_LOWER_OR_SPACE: Final = bytes(ord(chr(code).lower()) if chr(code).isalnum() else 32 for code in range(128)).ljust(256)


def ascii_words(text: str) -> list[str]:
    """Runs of letters and digits of an ASCII text, in order and lower case, several times faster than by a pattern."""
    return text.encode("ascii").translate(_LOWER_OR_SPACE).decode("ascii").split()


def user_text(trajectory: Trajectory) -> dict[int, str]:
    """System and user text by the turn it precedes, the question included, in order.

    After turn 0, a prompt that holds nothing but template tokens and role names is no message; a message whose text the
    record lacks is an empty one.
    """
    found = {0: trajectory.question} if trajectory.question else {}
    for segment in trajectory.segments:
        if segment.kind is not SegmentKind.PROMPT:
            continue
        text = trajectory.segment_text(segment)
        if text is None or segment.turn == 0 or _TEMPLATE.sub("", text):
            found[segment.turn] = f"{found.get(segment.turn, '')}\n{text or ''}"
    return found


def policy_text(trajectory: Trajectory) -> dict[int, str | None]:
    """Reasoning and calls by the turn that wrote them; None for a turn of which the record lacks some text.

    Where no text of a turn spells its calls, their arguments stand in for it.
    """
    parts: dict[int, list[str | None]] = {}
    spelled = set()
    for segment in trajectory.segments:
        if segment.kind in _WRITTEN:
            parts.setdefault(segment.turn, []).append(text := trajectory.segment_text(segment))
            if text and segment.kind is SegmentKind.CALL:
                spelled.add(segment.turn)
    for call in trajectory.calls:
        if call.turn not in spelled:
            parts.setdefault(call.turn, []).append(call.arguments)
    return {turn: _joined(texts) for turn, texts in sorted(parts.items())}


def _joined(texts: list[str | None]) -> str | None:
    known = [text for text in texts if text is not None]
    return "\n".join(known) if len(known) == len(texts) else None

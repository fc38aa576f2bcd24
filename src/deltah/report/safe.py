"""Text from logs made inert: what a page may show, and JSON that may stand inside a `<script>` element.

Control characters, bidirectional overrides and invisible tag characters become visible symbols, so that a log can
neither hide text nor reorder it; lone surrogates, which UTF-8 cannot hold, are spelled out. Newline and tab stay.
Escaping for HTML is the template engine's work (autoescape), not done here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

_CONTROL_PICTURES: Final = 0x2400
_INERT: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, C1
    "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff"  # marks, overrides, isolates, invisibles
    "\ufff9-\ufffb\ufffe\uffff"  # interlinear annotation, noncharacters
    "\ud800-\udfff"  # lone surrogates
    "\U000e0000-\U000e007f]"  # tag characters
)
_SCRIPT_ESCAPES: Final = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def inert(text: str) -> str:
    """Replace what could hide, reorder or break text by visible symbols: ESC becomes ␛, U+202E becomes ⟨U+202E⟩."""
    return _INERT.sub(_visible, text)


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(_CONTROL_PICTURES + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else f"⟨U+{code:04X}⟩"


def inert_tree(value: Any) -> Any:
    """Apply `inert` to every string of plain containers, keys included."""
    if isinstance(value, str):
        return inert(value)
    if isinstance(value, Mapping):
        return {inert(str(key)): inert_tree(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [inert_tree(item) for item in value]
    return value


def cut(text: str, limit: int) -> tuple[str, int]:
    """The first `limit` characters, and how many were cut off."""
    return text[:limit], max(0, len(text) - limit)


def script_json(value: Any) -> str:
    """Strict JSON without `<`, `>` or `&`: no content can end the `<script>` element it stands in."""
    return compact_json(value).translate(_SCRIPT_ESCAPES)


def compact_json(value: Any) -> str:
    """Strict JSON on one line, keys in their given order."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

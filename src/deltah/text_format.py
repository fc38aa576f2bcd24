"""Numbers as text: with their nouns ("1 file", "2 files"), with fixed digits, as money; names of tools; inert text."""

from __future__ import annotations

import math
import re
from typing import Final

MISSING: Final = "–"
"""Shown for what was not measured."""
UNPARSED: Final = "(not parsed)"
"""Shown for the tool of a call that could not be parsed, whose name is blank."""
_CONTROL_PICTURES: Final = 0x2400
_INERT: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, C1
    "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff"  # marks, overrides, isolates, invisibles
    "\ufff9-\ufffb\ufffe\uffff"  # interlinear annotation, noncharacters
    "\ud800-\udfff"  # lone surrogates
    "\U000e0000-\U000e007f]"  # tag characters
)


def count(n: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 file", "2 files", "1,394 trajectories"."""
    regular = f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2:-1] not in "aeiou" else f"{noun}s"
    return f"{n:,} {noun if n == 1 else plural or regular}"


def share(n: int, total: int, noun: str) -> str:
    """A part of a whole, whose noun goes with the whole: "1 of 88 calls", "1 of 1 call"."""
    return f"{n:,} of {count(total, noun)}"


def agreeing(n: int, singular: str, plural: str) -> str:
    """The word that goes with a count, such as its verb."""
    return singular if n == 1 else plural


def number(value: float | None, digits: int, *, signed: bool = False) -> str:
    """Fixed digits, a typographic minus, no negative zero; "–" for None and NaN."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:{'+' if signed else ''},.{digits}f}"
    if not text.strip("+-0.,"):
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")


def money_text(amount: float) -> str:
    """Two decimals; four of less than one unit."""
    return number(amount, 2 if not amount or amount >= 1 else 4)


def tool_title(name: str) -> str:
    """Name of a tool as it is shown."""
    return name if name.strip() else UNPARSED


def inert(text: str) -> str:
    """Replace what could hide, reorder or break text by visible symbols: ESC becomes ␛, U+202E becomes ⟨U+202E⟩."""
    return _INERT.sub(_visible, text)


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(_CONTROL_PICTURES + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else f"⟨U+{code:04X}⟩"

"""Numbers with their nouns: "1 file", "2 files"."""

from __future__ import annotations


def count(n: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 file", "2 files", "1,394 trajectories"."""
    return f"{n:,} {noun if n == 1 else plural or _plural(noun)}"


def share(n: int, total: int, noun: str) -> str:
    """A part of a whole, whose noun goes with the whole: "1 of 88 calls", "1 of 1 call"."""
    return f"{n:,} of {count(total, noun)}"


def agreeing(n: int, singular: str, plural: str) -> str:
    """The word that goes with a count, such as its verb."""
    return singular if n == 1 else plural


def _plural(noun: str) -> str:
    return f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2:-1] not in "aeiou" else f"{noun}s"

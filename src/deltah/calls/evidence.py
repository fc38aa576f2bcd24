"""What the text of a trajectory shows about its calls: facts, and classes of waste that they may amount to.

A fact is no accusation: that a call repeats another is a fact, and that it was *waste* needs a tool of which it is
known that the same call gives the same answer. `deltah.calls.waste` finds the facts, `deltah.calls.tool_kinds` knows
the tools and gives the level; docs/waste.md states the rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Waste(StrEnum):
    """What the text shows about a call."""

    EXACT_DUPLICATE = "exact_duplicate"
    """The same call gave the same answer before."""
    REPEATED_ERROR = "repeated_error"
    """The same call had failed with the same error before, and does not succeed later."""
    NEAR_DUPLICATE = "near_duplicate"
    """A hint: a call in similar words came before, and the result was in context."""
    RESULT_IN_CONTEXT = "result_in_context"
    """A hint: the whole result stood word for word in the context before the call was issued."""
    RESULT_UNUSED = "result_unused"
    """A hint: no new word of the result occurs in anything the policy wrote later."""


REPEATS: Final = (Waste.EXACT_DUPLICATE, Waste.REPEATED_ERROR)
"""Classes that are waste where the tool is known to be repeatable; the others are hints."""


class WasteLevel(StrEnum):
    """What the text, the knowledge about the tool and entropy together say about a call."""

    CERTIFIED = "certified"
    """It repeats a call that nothing stands against, of a repeatable tool, and ΔH is certified not reduced."""
    LIKELY = "likely"
    """The same; ΔH is undecided, undefined or was not measured."""
    HINT = "hint"
    """A class holds, and no more is known."""
    NONE = "none"
    """No class holds, or the call reduced entropy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFacts:
    """Facts about one call."""

    waste: frozenset[Waste] = frozenset()
    repeats: int | None = None
    """Place of the latest earlier equal call, from 0; None: none."""
    same_result: bool | None = None
    """Whether that call gave the same result; None: no such call, or a result that cannot be compared."""
    between: tuple[str, ...] = ()
    """Tools called between the two, those of both turns included, in order of name."""
    message_between: bool = False
    """Whether a user or system message stood between the two."""
    hashes: tuple[int | None, int | None, int | None] = (None, None, None)
    """Of the call, its result, and the words of the result that the call lacks; None: not to be compared."""


@dataclass(slots=True, eq=False)
class CallText:
    """One call and its result, as later calls are compared with them."""

    name: str
    turn: int
    arguments: str
    """Equal for equal arguments."""
    answer: str | None
    """Equal for the same result; of an error without its numbers. None: no result, or one that cannot be compared."""
    failed: bool
    transient: bool
    """Whether it failed for a reason that may pass."""
    flat: str
    """Result with single spaces; empty where there is none."""

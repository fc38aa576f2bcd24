"""What the page calls the signal that judged its calls, and what its verdicts say; the method's ΔH unless stated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from deltah.core.registry import Entry
from deltah.core.signals import SIGNALS
from deltah.report.data import ReportData
from deltah.stats.tables import number

Judge: TypeAlias = tuple[str, float]
"""Name and margin of a signal that judged calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSignal:
    """The words of one page."""

    title: Entry[Any]
    reduced: str
    """Which calls the reduction rate counts, after "calls"."""
    unreduced: str
    """Which calls may be waste, after "calls"."""
    is_method: bool
    """Whether it is the method's own signal, of which the page's sentences speak."""
    fact: str
    """For the notes: name, definition and margin; empty for the method's."""

    def as_dict(self) -> dict[str, Any]:
        """As the payload holds it."""
        return {
            "title": self.title.title,
            "unit": self.title.unit,
            "with_unit": self.title.with_unit,
            "reduced": self.reduced,
            "is_method": self.is_method,
            "fact": self.fact,
        }


def page_signal(data: ReportData) -> PageSignal:
    """Words for the signal of all evaluations; for several signals, words that hold of each."""
    by_arm = {arm.name: _signals(e.signals for e in arm.evaluations.values()) for arm in data.columns}
    found = _signals(by_arm.values())
    names = {name for name, _ in found}
    if names <= {"delta_h"}:
        return PageSignal(
            title=SIGNALS.resolve("delta_h"),
            reduced="that certainly lowered entropy",
            unreduced="that did not lower entropy",
            is_method=True,
            fact="",
        )
    if len(found) == 1:
        ((name, margin),) = found
        title = SIGNALS.resolve(name)
        below = f"{number(-margin, 3 if margin else 0)} {title.unit if margin else ''}".strip()
        reduced, fact = f"whose {title.title} certainly lies below {below}", _fact(name, margin)
    else:
        several = replace(SIGNALS["delta_h"], name="", title="signal", unit="", meaning="")
        title = SIGNALS.resolve(names.pop()) if len(names) == 1 else several
        reduced = f"whose {title.title} certainly lies below minus the margin"
        fact = "; ".join(f"{arm}: {_fact(*each)}" for arm, own in by_arm.items() for each in sorted(own))
    unreduced = "that do not count as reduced"
    return PageSignal(title=title, reduced=reduced, unreduced=unreduced, is_method=False, fact=fact)


def _signals(sets: Iterable[frozenset[Judge]]) -> frozenset[Judge]:
    return frozenset[Judge]().union(*sets)


def _fact(name: str, margin: float) -> str:
    title = SIGNALS.resolve(name)
    return f"{title.title} ({name}): {title.meaning}; margin {margin:.3g} {title.unit}".strip()

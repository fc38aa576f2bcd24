"""Named summaries as rows: one source for the terminal's table and for the page's.

A cell holds its text ("1.36"), its interval ("[1.21, 1.52]") and the estimate, so that a terminal, a page and a JSON
file show the same digits. Signs and rounding are decided here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from deltah.calls.grading import OUTCOME
from deltah.core.registry import Entry
from deltah.core.signals import SIGNALS
from deltah.errors import InvalidValueError
from deltah.stats.bootstrap import Estimate
from deltah.stats.summary import STATISTICS, CallSummary, Comparison, Statistics, Summary

MISSING: Final = "–"
"""Shown for what was not measured."""
UNPARSED: Final = "(not parsed)"
"""Shown for the tool of a call that could not be parsed, whose name is blank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One statistic of a table."""

    key: str
    """Field of `Statistics`, or "seconds"."""
    title: str
    digits: int = 2
    unit: str = ""
    signed: bool = False
    """Whether a positive value has its plus sign: where the sign is what is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One number as it is shown."""

    text: str
    interval: str = ""
    estimate: Estimate | None = None

    def __str__(self) -> str:
        return f"{self.text} {self.interval}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One arm."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns and rows; every row has one cell a column."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


METHOD: Final = SIGNALS["delta_h"]
ALL_COLUMNS: Final = (
    Column(key="outcome", title=OUTCOME, digits=3),
    Column(key="accuracy", title="accuracy", digits=3),
    Column(key="calls_per_trajectory", title="calls / trajectory"),
    Column(key="correct_per_call", title="correct / call"),
    Column(key="reduction_rate", title="reduction rate"),
    Column(key="mean_value", title=f"mean {METHOD.title}", digits=3, unit=METHOD.unit, signed=True),
    Column(key="undecided", title="undecided"),
    Column(key="undefined", title="undefined"),
    Column(key="waste", title="waste"),
    Column(key="certified_waste", title="certified waste"),
    Column(key="no_call", title="without a call"),
    Column(key="sampled_tokens", title="sampled tokens", digits=0),
    Column(key="seconds", title="seconds", digits=0),
)
_BY_KEY: Final = {column.key: column for column in ALL_COLUMNS}
DEMO_COLUMNS: Final = ("outcome", "calls_per_trajectory", "correct_per_call", "reduction_rate", "seconds")
PAGE_COLUMNS: Final = (
    "outcome",
    "accuracy",
    "calls_per_trajectory",
    "correct_per_call",
    "reduction_rate",
    "mean_value",
    "waste",
    "seconds",
)
SPLIT_COLUMNS: Final = ("outcome", "calls_per_trajectory", "correct_per_call")
DIFFERENCE_COLUMNS: Final = PAGE_COLUMNS[:-1]
GRADED_COLUMNS: Final = frozenset({"outcome", "accuracy", "correct_per_call"})
"""Those that say nothing where no trajectory has an outcome."""


def table(
    summaries: Mapping[str, Statistics],
    *,
    seconds: Mapping[str, float | None] | None = None,
    columns: tuple[str, ...] = DEMO_COLUMNS,
    signed: bool = False,
    outcome: str = OUTCOME,
    signal: Entry[Any] = METHOD,
) -> Table:
    """Rows for named summaries (or comparisons), in their order.

    Args:
        summaries: One a row.
        seconds: Wall time of each row, where known.
        columns: Keys of `ALL_COLUMNS`.
        signed: Write a plus sign before positive values, for differences.
        outcome: Title of the mean outcome (`deltah.calls.grading.outcome_title`).
        signal: Title and unit of the mean signal.

    Raises:
        InvalidValueError: for an unknown column.
    """
    unknown = [key for key in columns if key not in _BY_KEY]
    if unknown:
        raise InvalidValueError(f"unknown column {unknown[0]!r}; choose from: {', '.join(_BY_KEY)}")
    mean = replace(_BY_KEY["mean_value"], title=f"mean {signal.title}", unit=signal.unit)
    named = {**_BY_KEY, "outcome": replace(_BY_KEY["outcome"], title=outcome), "mean_value": mean}
    chosen = tuple(named[key] for key in columns)
    times = seconds or {}

    def cell(name: str, summary: Statistics, column: Column) -> Cell:
        if column.key not in STATISTICS:
            return Cell(text=number(times.get(name), column.digits))
        if column.key == "reduction_rate" and isinstance(summary, Summary | Comparison) and summary.untold:
            return Cell(text=MISSING, estimate=summary.reduction_rate)
        return estimate_cell(getattr(summary, column.key), column.digits, signed=signed or column.signed)

    rows = (Row(name=name, cells=tuple(cell(name, s, c) for c in chosen)) for name, s in summaries.items())
    return Table(columns=chosen, rows=tuple(rows))


def estimate_cell(estimate: Estimate, digits: int, *, signed: bool = False) -> Cell:
    """One estimate as text."""
    low, high = number(estimate.low, digits, signed=signed), number(estimate.high, digits, signed=signed)
    interval = "" if MISSING in (low, high) else f"[{low}, {high}]"
    return Cell(text=number(estimate.value, digits, signed=signed), interval=interval, estimate=estimate)


def rate_cell(summary: CallSummary) -> Cell:
    """The reduction rate of a group of calls; a dash where no call could be told, which is no rate of 0."""
    rate = summary.reduction_rate
    return estimate_cell(rate, 2) if summary.told else Cell(text=MISSING, estimate=rate)


def tool_title(name: str) -> str:
    """Name of a tool as it is shown."""
    return name if name.strip() else UNPARSED


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

"""Calls by tool and by round index, and the histogram of ΔH, as the payload holds them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from deltah.calls.rows import CallRow, calls_by, histogram, histogram_edges
from deltah.report.data import ReportData
from deltah.stats.callgroups import summarise_calls
from deltah.stats.tables import estimate_cell, rate_cell, tool_title
from deltah.text_format import count

MAX_TOOLS: Final = 20
MAX_ROUNDS: Final = 8
"""Round indices shown one by one; later ones share a row."""


def call_tables(data: ReportData, evaluation: str) -> dict[str, Any]:
    """Calls by tool and by round index, and the histogram of ΔH, for each arm."""
    rows = {i: arm.evaluations[evaluation].rows for i, arm in enumerate(data.columns) if evaluation in arm.evaluations}
    edges = histogram_edges(row for listed in rows.values() for row in listed)
    return {
        "evaluation": evaluation,
        "by_tool": _by_tool(rows, data.seed),
        "by_round": _by_round(rows, data.seed),
        "edges": [round(float(edge), 6) for edge in edges],
        "histograms": [
            {"arm": i, "counts": histogram(listed, edges).tolist(), "undefined": _undefined(listed)}
            for i, listed in rows.items()
        ],
    }


def _undefined(rows: Iterable[CallRow]) -> int:
    return sum(not math.isfinite(row.delta_h) for row in rows)


def _by_tool(rows: Mapping[int, Sequence[CallRow]], seed: int) -> list[dict[str, Any]]:
    """Rows tool by tool, the most called first, and arm by arm within each; rare names share the last group."""
    counts = Counter(row.tool for listed in rows.values() for row in listed)
    order = sorted(counts, key=lambda name: (-counts[name], name))
    rest = count(len(order) - MAX_TOOLS, "other name")
    shown = {name: tool_title(name) if i < MAX_TOOLS else rest for i, name in enumerate(order)}
    return _groups(rows, lambda row: shown[row.tool], list(dict.fromkeys(shown.values())), seed)


def _by_round(rows: Mapping[int, Sequence[CallRow]], seed: int) -> list[dict[str, Any]]:
    """Rows round index by round index, and arm by arm within each; late indices share the last group."""
    names = [*map(str, range(1, MAX_ROUNDS)), f"{MAX_ROUNDS} and later"]
    return _groups(rows, lambda row: names[min(row.round, MAX_ROUNDS) - 1], names, seed)


def _groups(
    rows: Mapping[int, Sequence[CallRow]], key: Callable[[CallRow], str], order: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    split = {arm: calls_by(listed, key) for arm, listed in rows.items()}
    return [_group(arm, name, split[arm][name], seed) for name in order for arm in split if name in split[arm]]


def _group(arm: int, name: str, rows: Sequence[CallRow], seed: int) -> dict[str, Any]:
    """One row of a table of calls."""
    summary = summarise_calls(rows, seed=seed)
    rate, delta = rate_cell(summary), estimate_cell(summary.delta_h, 3, signed=True)
    return {
        "arm": arm,
        "name": name,
        "n": summary.n,
        "told": summary.told,
        "errors": summary.errors,
        "unanswered": summary.unanswered,
        "undecided": summary.undecided,
        "undefined": summary.undefined,
        "certified": summary.certified,
        "likely": summary.likely,
        "reduction_rate": {"text": rate.text, "interval": rate.interval, **summary.reduction_rate.as_dict()},
        "delta_h": {"text": delta.text, "interval": delta.interval, **summary.delta_h.as_dict()},
    }

"""The figures a reader sees first: calls, reduction rate, correct answers per call, waste; one row an arm in each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from deltah.calls.waste import WasteLevel
from deltah.core.signal_types import Verdict
from deltah.report.data import ReportData
from deltah.report.evaluation import Evaluation
from deltah.report.signal import PageSignal
from deltah.stats.bootstrap import Estimate
from deltah.stats.summary import Summary
from deltah.stats.tables import MISSING, Cell, estimate_cell, money_text, number
from deltah.text_format import count

MAX_ARMS: Final = 4
"""With more arms the table below says it better."""
_SHARES: Final = (
    ("reduction_rate", "Reduction rate", "share of calls {signal.reduced}"),
    ("correct_per_call", "Correct answers per call", "productivity of the tools"),
    ("waste", "Waste", "share of calls whose text shows waste and {signal.unreduced}"),
)


def headline(
    data: ReportData, signal: PageSignal, evaluation: str, summaries: Mapping[str, Summary]
) -> dict[str, Any] | None:
    """Figures of one evaluation; None where no arm made a call, or too many arms stand side by side."""
    found = {i: summaries[arm.name] for i, arm in enumerate(data.columns) if arm.name in summaries}
    if not 0 < len(found) <= MAX_ARMS or not any(summary.calls for summary in found.values()):
        return None
    calls = [_calls(i, summary) for i, summary in found.items()]
    figures: list[dict[str, Any]] = [{"key": "calls", "title": "Calls", "about": "tool calls, all told", "rows": calls}]
    for key, title, about in _SHARES:
        rows = [
            _share(i, getattr(summary, key), untold=key == "reduction_rate" and summary.untold)
            for i, summary in found.items()
        ]
        if any(row["estimate"]["n"] for row in rows):
            figures.append({"key": key, "title": title, "about": about.format(signal=signal), "rows": rows})
    dropped = [_saved(i, data.columns[i].evaluations[evaluation]) for i in found]
    if any(row is not None for row in dropped):
        about = "tokens not sampled and not read, if the calls of certified waste were dropped; see Waste"
        rows = [row for row in dropped if row is not None]
        figures.append({"key": "savings", "title": "Savings", "about": about, "rows": rows})
    for row in (row for figure in figures if figure["key"] == "waste" for row in figure["rows"]):
        row["detail"] = _verdicts(data, row["arm"], evaluation)
    for row in (row for figure in figures if figure["key"] == "reduction_rate" for row in figure["rows"]):
        undecided = sum(r.label is Verdict.UNDECIDED for r in data.columns[row["arm"]].evaluations[evaluation].rows)
        row["detail"] = ", ".join(part for part in (undecided and f"{undecided:,} undecided", row["detail"]) if part)
    return {"evaluation": evaluation, "figures": figures}


def _calls(arm: int, summary: Summary) -> dict[str, Any]:
    mean = estimate_cell(summary.calls_per_trajectory, 2)
    detail = f"{mean.text} a trajectory {mean.interval}".strip()
    return {"arm": arm, "text": number(summary.calls, 0), "interval": "", "detail": detail}


def _share(arm: int, estimate: Estimate, *, untold: bool) -> dict[str, Any]:
    cell = Cell(text=MISSING) if untold else estimate_cell(estimate, 2)
    left_out = f"{estimate.left_out:,} left out" if estimate.left_out and math.isfinite(estimate.value) else ""
    shown = {"text": cell.text, "interval": cell.interval, "detail": left_out}
    return {"arm": arm, "estimate": estimate.as_dict(), "untold": untold, **shown}


def _saved(arm: int, evaluation: Evaluation) -> dict[str, Any] | None:
    """Tokens saved without certified waste; None where no call could be certified or is wasted."""
    saved = evaluation.facts.savings.certified
    if not saved.calls:
        return None
    parts = [f"{count(saved.calls, 'certified call')} dropped"]
    if math.isfinite(saved.money) and saved.money > 0:
        parts.append(f"{money_text(saved.money)} {evaluation.facts.costs.currency}")
    if math.isfinite(saved.seconds) and saved.seconds > 0:
        parts.append(f"{number(saved.seconds, 1)} s of tools")
    text = number(saved.call_tokens + saved.prompt_tokens, 0)
    return {"arm": arm, "text": text, "interval": "tokens", "detail": ", ".join(parts)}


def _verdicts(data: ReportData, arm: int, evaluation: str) -> str:
    rows = data.columns[arm].evaluations[evaluation].rows
    counts = {v: sum(row.verdict is v for row in rows) for v in (WasteLevel.CERTIFIED, WasteLevel.LIKELY)}
    return ", ".join(f"{n:,} {verdict.value}" for verdict, n in counts.items())

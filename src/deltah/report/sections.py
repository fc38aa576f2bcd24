"""The parts of a page: words for the signal, headline, waste, calls by tool and by round, and the pilot study."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, TypeAlias
from urllib.parse import quote

import numpy as np

from deltah.calls.evidence import Waste, WasteLevel
from deltah.calls.savings import Savings, SavingsReport, savings
from deltah.core.registry import Entry
from deltah.core.signals import SIGNALS, Verdict
from deltah.report.data import Evaluation, ReportData
from deltah.stats.bootstrap import Cell, Estimate, estimate_cell
from deltah.stats.columns import CALL_INDEX
from deltah.stats.study import ROC_SIGNALS, Failure, StudyResult
from deltah.stats.study_text import (
    FAILURE_TITLES,
    TITLES,
    LabelTable,
    label_tables,
    method_notes,
    result_size,
    signal_notes,
)
from deltah.stats.summary import MAX_NAME_CHARS, CallSummary, Summary, calls_by, rate_cell
from deltah.text_format import MISSING, UNPARSED, count, money_text, number, tool_title

MAX_ARMS: Final = 4
"""Of the headline."""
MAX_TOOLS: Final = 20
HISTOGRAM_BINS: Final = 24
"""Of the histogram of the signal; even, so that one edge is 0."""
_NO_CHANGE: Final = 1e-5
"""Signals all below this are equal but for rounding, and no scale for a histogram."""
MAX_LABELS_DRAWN: Final = 6
"""Labels of a study with a figure of their own."""
STUDY_DIGITS: Final = 2
"""Of a study's tables, so that all columns fit."""
_MAX_ID_CHARS: Final = 200
_COLOURS: Final = 7
MAX_ROUNDS: Final = 8
"""Round indices shown one by one; later ones share a row."""
_SHARES: Final = (
    ("reduction_rate", "Reduction rate", "share of calls {signal.reduced}"),
    ("correct_per_call", "Correct answers per call", "productivity of the tools"),
    ("waste", "Waste", "share of calls that repeat one for nothing and {signal.unreduced}"),
)
CLASSES: Final = {
    Waste.EXACT_DUPLICATE: "The same call gave the same answer before.",
    Waste.REPEATED_ERROR: "The same call had failed with the same error before, and does not succeed later.",
    Waste.NEAR_DUPLICATE: "A hint: an earlier call was worded alike, and its answer already said this.",
    Waste.RESULT_IN_CONTEXT: "A hint: the whole result stood word for word in what the model had already read.",
    Waste.RESULT_UNUSED: "A hint: nothing that the model wrote later uses a new word of the result.",
}
LEVELS: Final = {
    WasteLevel.CERTIFIED: "It repeats a call of a repeatable tool; the whole interval of {signal} says: not reduced.",
    WasteLevel.LIKELY: "It repeats a call of a repeatable tool; {signal} is undecided, undefined or was not measured.",
    WasteLevel.HINT: "A class holds, but it is not known that the tool is repeatable, or something stood between.",
    WasteLevel.NONE: "Nothing in the text speaks against the call, or it counts as reduced.",
}
_Found: TypeAlias = Mapping[int, Evaluation]
"""An evaluation of each arm that has it, by the arm's index."""
_TOOL: Final = f"if(trim(tool) = '', '{UNPARSED}', left(tool, {MAX_NAME_CHARS}))"
"""Name of a call's tool as it is shown, in SQL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSignal:
    """Words of a page for the signal that judged its calls, and for its verdicts."""

    entry: Entry[Any]
    reduced: str = "that certainly reduced entropy"
    """Which calls the reduction rate counts, after "calls"."""
    unreduced: str = "that did not reduce entropy"
    """Which calls may be waste, after "calls"."""
    fact: str = ""
    """For the notes: name, definition and margin; empty for the method's own signal."""

    def as_dict(self) -> dict[str, Any]:
        """As the payload holds it."""
        named = {"title": self.entry.title, "unit": self.entry.unit, "with_unit": self.entry.with_unit}
        return {**named, "reduced": self.reduced, "is_method": not self.fact, "fact": self.fact}


def page_signal(data: ReportData) -> PageSignal:
    """Words for the signal of all evaluations; of several signals, words that hold of each."""
    # Name and margin of each signal.
    by_arm = {
        a.name: {judge for e in a.evaluations.values() for judge in e.met("signal", "margin")} for a in data.columns
    }
    found = set[tuple[str, float]]().union(*by_arm.values())
    names = {name for name, _ in found}
    if names <= {"delta_h"}:
        return PageSignal(entry=SIGNALS["delta_h"])
    several = replace(SIGNALS["delta_h"], name="", title="signal", unit="", meaning="")
    entry = SIGNALS.resolve(names.pop()) if len(names) == 1 else several
    if len(found) == 1:
        ((name, margin),) = found
        below = f"{number(-margin, 3 if margin else 0)} {entry.unit if margin else ''}".strip()
        fact = _fact(name, margin)
    else:
        below = "minus the margin"
        fact = "; ".join(f"{arm}: {_fact(*each)}" for arm, own in by_arm.items() for each in sorted(own))
    reduced = f"whose {entry.title} certainly lies below {below}"
    return PageSignal(entry=entry, reduced=reduced, unreduced="that do not count as reduced", fact=fact)


def _fact(name: str, margin: float) -> str:
    entry = SIGNALS.resolve(name)
    return f"{entry.title} ({name}): {entry.meaning}; margin {margin:.3g} {entry.unit}".strip()


def headline(
    data: ReportData, signal: PageSignal, evaluation: str, summaries: Mapping[str, Summary]
) -> dict[str, Any] | None:
    """The figures at the top, one row per arm in each; None without any call, or with too many arms."""
    found = {i: summaries[arm.name] for i, arm in enumerate(data.columns) if arm.name in summaries}
    if not 0 < len(found) <= MAX_ARMS or not any(summary.calls for summary in found.values()):
        return None
    kept = {i: data.columns[i].evaluations[evaluation] for i in found}
    calls = []
    for i, summary in found.items():
        mean = estimate_cell(summary.calls_per_trajectory, 2)
        detail = f"{mean.text} a trajectory {mean.interval}".strip()
        calls.append({"arm": i, "text": number(summary.calls, 0), "interval": "", "detail": detail})
    figures: list[dict[str, Any]] = [{"key": "calls", "title": "Calls", "about": "number of tool calls", "rows": calls}]
    for key, title, about in _SHARES:
        rows = [_share(i, key, summary, kept[i]) for i, summary in found.items()]
        if any(row["estimate"]["n"] for row in rows):
            figures.append({"key": key, "title": title, "about": about.format(signal=signal), "rows": rows})
    if saved := [row for i in found if (row := _tokens_saved(i, kept[i])) is not None]:
        about = "tokens not sampled and not read if calls of certified waste were dropped; see Waste"
        figures.append({"key": "savings", "title": "Savings", "about": about, "rows": saved})
    return {"evaluation": evaluation, "figures": figures}


def _share(arm: int, key: str, summary: Summary, evaluation: Evaluation) -> dict[str, Any]:
    estimate: Estimate = getattr(summary, key)
    untold = key == "reduction_rate" and summary.untold
    cell = Cell(text=MISSING) if untold else estimate_cell(estimate, 2)
    details = list[str]()
    if key == "waste":
        levels = _counts(evaluation, "waste_level")
        details += [f"{levels.get(level, 0):,} {level.value}" for level in (WasteLevel.CERTIFIED, WasteLevel.LIKELY)]
    elif estimate.left_out and math.isfinite(estimate.value):
        details.append(f"{estimate.left_out:,} left out")
    if key == "reduction_rate" and (undecided := _counts(evaluation, "verdict").get(Verdict.UNDECIDED)):
        details.insert(0, f"{undecided:,} undecided")
    shown = {"text": cell.text, "interval": cell.interval, "detail": ", ".join(details)}
    return {"arm": arm, "estimate": estimate.as_dict(), "untold": untold, **shown}


def _tokens_saved(arm: int, evaluation: Evaluation) -> dict[str, Any] | None:
    """Tokens saved without the calls of certified waste; None without such calls."""
    saved = savings(evaluation.table, evaluation.costs).certified
    if not saved.calls:
        return None
    parts = [f"{count(saved.calls, 'certified call')} dropped"]
    if math.isfinite(saved.money) and saved.money > 0:
        parts.append(f"{money_text(saved.money)} {evaluation.costs.prices.currency}")
    if math.isfinite(saved.seconds) and saved.seconds > 0:
        parts.append(f"{number(saved.seconds, 1)} s of tools")
    text = number(saved.call_tokens + saved.prompt_tokens, 0)
    return {"arm": arm, "text": text, "interval": "tokens", "detail": ", ".join(parts)}


def meanings(signal: PageSignal) -> dict[str, dict[str, str]]:
    """Words for every waste class and level, for tooltips and legends."""
    return {
        "classes": {waste.value: text for waste, text in CLASSES.items()},
        "levels": {level.value: text.format(signal=signal.entry.title) for level, text in LEVELS.items()},
    }


def waste_table(data: ReportData, name: str) -> dict[str, Any] | None:
    """Calls of each arm by waste level and by class, and what dropping waste would save; None without any call."""
    found = {i: evaluation for i, evaluation in _having(data, name).items() if len(evaluation.table)}
    if not found:
        return None
    saved = {i: savings(e.table, e.costs) for i, e in found.items()}
    levels = _savings(saved)
    arms = [(i, len(e.table), _by_level(_counts(e, "waste_level"))) for i, e in found.items()]
    return {
        "evaluation": name,
        "arms": [{"arm": i, "calls": calls, "levels": by_level} for i, calls, by_level in arms],
        "by_class": _by_class(found),
        "by_level": levels,
        "saves": any(row["calls"] for rows in levels.values() for row in rows),
        "currency": next(iter(found.values())).costs.prices.currency,
        "assumptions": list(dict.fromkeys(line for report in saved.values() for line in report.assumptions)),
    }


def _having(data: ReportData, name: str) -> _Found:
    return {i: arm.evaluations[name] for i, arm in enumerate(data.columns) if name in arm.evaluations}


def _counts(evaluation: Evaluation, column: str) -> dict[str, int]:
    """Calls by the value of a column."""
    return dict(evaluation.rows(f"SELECT {column}, count(*) FROM calls GROUP BY ALL"))


def _by_level(counts: Mapping[str, int]) -> dict[str, int]:
    return {level.value: counts.get(level, 0) for level in WasteLevel}


def _by_class(found: _Found) -> dict[str, list[dict[str, Any]]]:
    """Calls of each class that was met, by level; `none` counts those that reduced entropy."""
    counts: dict[str, dict[int, dict[str, int]]] = {waste.value: {} for waste in Waste}
    each = "(SELECT unnest(waste) AS class, waste_level FROM calls)"
    for i, evaluation in found.items():
        for waste, level, n in evaluation.rows(f"SELECT class, waste_level, count(*) FROM {each} GROUP BY ALL"):
            counts[waste].setdefault(i, {})[level] = n
    tables = {waste: [{"arm": i, **_by_level(n)} for i, n in arms.items()] for waste, arms in counts.items()}
    return {waste: rows for waste, rows in tables.items() if rows}


def _savings(found: Mapping[int, SavingsReport]) -> dict[str, list[dict[str, Any]]]:
    """Savings at both levels of evidence; null where a price is unknown."""
    tables = {"certified": [_saved(i, report.certified) for i, report in found.items()]}
    more = {i: r.certified_and_likely for i, r in found.items() if r.certified_and_likely.calls > r.certified.calls}
    return tables | ({"certified and likely": [_saved(i, saved) for i, saved in more.items()]} if more else {})


def _saved(arm: int, saved: Savings) -> dict[str, Any]:
    """Savings of one arm, each number with the text that shows it."""
    tokens = {key: number(getattr(saved, key), 0) for key in ("call_tokens", "result_tokens", "prompt_tokens")}
    money = {key: money_text(getattr(saved, key)) for key in ("money", "money_with_cache")}
    seconds = number(saved.seconds, 2 if saved.seconds < 100 else 0)
    return {"arm": arm, **asdict(saved), "texts": {**tokens, **money, "seconds": seconds}}


def call_tables(data: ReportData, evaluation: str) -> dict[str, Any]:
    """Calls by tool and by round index, and the histogram of the signal, for each arm."""
    found = _having(data, evaluation)
    defined = "SELECT value FROM calls WHERE value IS NOT NULL"
    values = {i: np.asarray(e.table.sql(defined).fetchnumpy()["value"], np.float64) for i, e in found.items()}
    # Edges hold 99 % of the values, and one of them is 0; the outer bins also count what lies beyond.
    sizes = np.abs(np.concatenate([*values.values(), []]))
    limit = float(np.quantile(sizes, 0.99)) if len(sizes) else 0.0
    edges = np.linspace(-1.0, 1.0, HISTOGRAM_BINS + 1) * (limit if limit > _NO_CHANGE else 1.0)
    bins = {i: np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0].tolist() for i, v in values.items()}
    return {
        "evaluation": evaluation,
        "by_tool": _by_tool(found, data.seed),
        "by_round": _by_round(found, data.seed),
        "edges": np.round(edges, 6).tolist(),
        "histograms": [
            {"arm": i, "counts": bins[i], "undefined": len(found[i].table) - len(v)} for i, v in values.items()
        ],
    }


def _by_tool(found: _Found, seed: int) -> list[dict[str, Any]]:
    """Rows tool by tool, the most called first, and arm by arm within each; rare names share the last group."""
    counts = Counter[str]()
    for evaluation in found.values():
        counts.update(_counts(evaluation, _TOOL))
    order = sorted(counts, key=lambda name: (-counts[name], name))
    shown, rest = order[:MAX_TOOLS], count(len(order) - MAX_TOOLS, "other name")
    group = f"if(list_contains($shown::VARCHAR[], {_TOOL}), {_TOOL}, $rest)"
    split = {i: calls_by(e.table, group, seed=seed, shown=shown, rest=rest) for i, e in found.items()}
    return [_group(i, name, split[i][name]) for name in (*shown, rest) for i in split if name in split[i]]


def _by_round(found: _Found, seed: int) -> list[dict[str, Any]]:
    """Rows round index by round index, and arm by arm within each; late indices share the last group."""
    split = {i: calls_by(e.table, f"least(round, {MAX_ROUNDS})", seed=seed) for i, e in found.items()}
    names = {k: f"{k} and later" if k == MAX_ROUNDS else str(k) for k in range(1, MAX_ROUNDS + 1)}
    return [_group(i, name, split[i][k]) for k, name in names.items() for i in split if k in split[i]]


def _group(arm: int, name: str, summary: CallSummary) -> dict[str, Any]:
    """One row of a table of calls."""
    rate, mean = rate_cell(summary), estimate_cell(summary.mean_value, 3, signed=True)
    counts = ("n", "told", "errors", "unanswered", "undecided", "undefined", "certified", "likely")
    return {
        "arm": arm,
        "name": name,
        **{key: getattr(summary, key) for key in counts},
        "reduction_rate": {"text": rate.text, "interval": rate.interval, **summary.reduction_rate.as_dict()},
        "mean": {"text": mean.text, "interval": mean.interval, **summary.mean_value.as_dict()},
    }


def study_section(
    result: StudyResult, links: Mapping[str, str], *, anchor: str = "study", title: str = "Pilot study"
) -> dict[str, Any]:
    """A study as a section of the page; `links`: id of a trajectory to its key in the viewer."""
    tables = label_tables(result, STUDY_DIGITS)
    drawn = [table for table in tables if table.rows][:MAX_LABELS_DRAWN]
    labels = [table.label for table in drawn]
    return {
        "anchor": anchor,
        "title": title,
        "size": result_size(result),
        "findings": [table.finding for table in tables if table.rows and table.finding],
        "histograms": [asdict(h) for h in result.histograms if h.label in labels and any(h.good) and any(h.other)],
        "rocs": [panel for table in drawn if (panel := _roc_panel(result, table))["curves"]],
        "positions": _positions(result, drawn),
        "columns": list(TITLES.values()),
        "tables": [_table(table) for table in tables],
        "failures": [
            {
                "title": heading,
                "total": result.failure_counts[kind],
                "rows": [_failure(f, links) for f in result.failures if f.kind is kind],
            }
            for kind, heading in FAILURE_TITLES.items()
        ],
        "signals": list(map(list, signal_notes(result).items())),
        "notes": [*method_notes(result), *result.notes],
    }


def _roc_panel(result: StudyResult, table: LabelTable) -> dict[str, Any]:
    rows = {row.signal: row for row in table.rows}
    curves = [
        {
            "name": rows[c.signal].title,
            "class": "a0" if c.signal == CALL_INDEX else f"a{1 + ROC_SIGNALS.index(c.signal) % _COLOURS}",
            "auc": str(rows[c.signal].cells["auc"]),
            "x": c.false_positive_rate,
            "y": c.true_positive_rate,
        }
        for c in result.rocs
        if c.label == table.label
    ]
    return {"label": table.label, "curves": curves}


def _positions(result: StudyResult, drawn: Sequence[LabelTable]) -> list[dict[str, Any]]:
    """Two panels over the call index: mean reduction, and the label rates."""
    rows = result.positions
    names = [table.label for table in drawn if not table.graded]
    reduction = [("−ΔH", "a1", [row.reduction for row in rows])]
    rates = [(n, f"a{1 + i % _COLOURS}", [row.labels[n] for row in rows]) for i, n in enumerate(names)]
    panels = []
    for title, series, zero in (("Mean reduction −ΔH, nats", reduction, True), ("Share of good calls", rates, False)):
        if any(math.isfinite(estimate.value) for *_, estimates in series for estimate in estimates):
            shown = [{"name": n, "class": c, "values": [e.as_dict() for e in estimates]} for n, c, estimates in series]
            panels.append({"title": title, "indices": [row.index for row in rows], "series": shown, "zero": zero})
    return panels


def _table(table: LabelTable) -> dict[str, Any]:
    rows = [
        {
            "signal": row.title,
            "baseline": row.signal == CALL_INDEX,
            "n": f"{row.n:,}",
            "reason": row.reason,
            "cells": [{"text": cell.text, "interval": cell.interval} for cell in row.cells.values()],
        }
        for row in table.rows
    ]
    return {"label": table.label, "note": table.note, "size": table.size, "rows": rows}


def _failure(f: Failure, links: Mapping[str, str]) -> dict[str, Any]:
    key = links.get(f.trajectory)
    return {
        "trajectory": f.trajectory[:_MAX_ID_CHARS],
        "link": None if key is None else f"#t={quote(key, safe='')}&at=r{f.index}",
        "tool": tool_title(f.tool[:_MAX_ID_CHARS]),
        "index": f.index,
        "reduction": number(f.reduction, 3, signed=True),
    }

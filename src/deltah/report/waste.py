"""Waste as the payload holds it: what each class and verdict means, and how many calls of each arm carry it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from deltah.calls.rows import CallRow
from deltah.calls.savings import Savings
from deltah.calls.waste import Waste, WasteLevel
from deltah.report.data import ReportData
from deltah.report.evaluation import Evaluation
from deltah.report.signal import PageSignal
from deltah.stats.tables import money_text, number

CLASSES: Final = {
    Waste.EXACT_DUPLICATE: "The same tool with the same arguments had given the same answer before.",
    Waste.NEAR_DUPLICATE: "An earlier call asked the same but for form or wording, and its answer already said it.",
    Waste.RESULT_IN_CONTEXT: "Every passage of the result stood word for word in what the model had already read.",
    Waste.REPEATED_ERROR: "The same call had failed with the same error before, and does not succeed later.",
    Waste.RESULT_UNUSED: "Nothing the model wrote later takes up a new word of the result. A hint, not a verdict.",
}
VERDICTS: Final = {
    WasteLevel.CERTIFIED: "The text shows waste, and the whole interval of ΔH says that entropy was not reduced.",
    WasteLevel.LIKELY: "The text shows waste; ΔH is undecided, undefined or was not measured.",
    WasteLevel.HINT: "Only the use of the result speaks against the call.",
    WasteLevel.NONE: "Nothing in the text speaks against the call, or it reduced entropy.",
}


def meanings(signal: PageSignal) -> dict[str, dict[str, str]]:
    """Plain words for every class and verdict, for tooltips and legends."""
    title = signal.title.title
    other = {
        **VERDICTS,
        WasteLevel.CERTIFIED: f"The text shows waste, and the whole interval of {title} says: not reduced.",
        WasteLevel.LIKELY: f"The text shows waste; {title} is undecided, undefined or was not measured.",
        WasteLevel.NONE: "Nothing in the text speaks against the call, or it counts as reduced.",
    }
    return {
        "classes": {waste.value: text for waste, text in CLASSES.items()},
        "verdicts": {verdict.value: text for verdict, text in (VERDICTS if signal.is_method else other).items()},
    }


def waste_tables(data: ReportData) -> list[dict[str, Any]]:
    """For each evaluation with calls: calls of each arm by verdict and by class, and what dropping waste would save."""
    return [table for name in data.evaluation_names if (table := _table(data, name)) is not None]


def _table(data: ReportData, name: str) -> dict[str, Any] | None:
    found = {i: arm.evaluations[name] for i, arm in enumerate(data.columns) if name in arm.evaluations}
    found = {i: evaluation for i, evaluation in found.items() if evaluation.rows}
    if not found:
        return None
    levels = _by_level(found)
    return {
        "evaluation": name,
        "arms": [{"arm": i, **_verdicts(evaluation.rows)} for i, evaluation in found.items()],
        "by_class": _by_class(found),
        "by_level": levels,
        "saves": any(row["calls"] for rows in levels.values() for row in rows),
        "currency": next(iter(found.values())).facts.costs.currency,
        "assumptions": list(dict.fromkeys(line for e in found.values() for line in e.facts.savings.assumptions)),
    }


def _verdicts(rows: Sequence[CallRow]) -> dict[str, Any]:
    counts = Counter(row.verdict for row in rows)
    return {"calls": len(rows), "verdicts": {verdict.value: counts[verdict] for verdict in WasteLevel}}


def _by_class(found: Mapping[int, Evaluation]) -> dict[str, list[dict[str, Any]]]:
    """Calls of each class that was met, by verdict; `none` counts those that reduced entropy all the same."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for i, evaluation in found.items():
        counts = Counter((waste, row.verdict) for row in evaluation.rows for waste in row.waste)
        for waste in Waste:
            row = {verdict.value: counts[waste, verdict] for verdict in WasteLevel}
            if any(row.values()):
                tables.setdefault(waste.value, []).append({"arm": i, **row})
    return {waste.value: tables[waste.value] for waste in Waste if waste.value in tables}


def _by_level(found: Mapping[int, Evaluation]) -> dict[str, list[dict[str, Any]]]:
    """Savings at both levels of evidence, each number with the text that shows it; null where a price is unknown."""
    tables: dict[str, list[dict[str, Any]]] = {"certified": []}
    for i, evaluation in found.items():
        report = evaluation.facts.savings
        tables["certified"].append(_saved(i, report.certified))
        if report.certified_and_likely.calls > report.certified.calls:
            tables.setdefault("certified and likely", []).append(_saved(i, report.certified_and_likely))
    return tables


def _saved(arm: int, saved: Savings) -> dict[str, Any]:
    return {"arm": arm, **asdict(saved), "texts": _texts(saved)}


def _texts(saved: Savings) -> dict[str, str]:
    """Numbers as they are shown: whole tokens, two decimals of seconds, four digits of small sums of money."""
    tokens = {key: number(getattr(saved, key), 0) for key in ("call_tokens", "result_tokens", "prompt_tokens")}
    money = {key: money_text(getattr(saved, key)) for key in ("money", "money_with_cache")}
    return {**tokens, **money, "seconds": number(saved.seconds, 2 if saved.seconds < 100 else 0)}

"""Waste as the payload holds it: what each class and verdict means, and how many calls of each arm carry it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Final

from deltah.study.calls import CallRow
from deltah.study.report.data import ReportData
from deltah.study.report.evaluation import Evaluation
from deltah.study.savings import Savings
from deltah.study.tables import number
from deltah.study.waste import Verdict, Waste

CLASSES: Final = {
    Waste.EXACT_DUPLICATE: "The same tool with the same arguments had given the same answer before.",
    Waste.NEAR_DUPLICATE: "An earlier call asked the same but for form or wording, and its answer already said it.",
    Waste.RESULT_IN_CONTEXT: "Every passage of the result stood word for word in what the model had already read.",
    Waste.REPEATED_ERROR: "The same call had failed with the same error before, and does not succeed later.",
    Waste.RESULT_UNUSED: "Nothing the model wrote later takes up a new word of the result. A hint, not a verdict.",
}
VERDICTS: Final = {
    Verdict.CERTIFIED: "The text shows waste, and the whole interval of ΔH says that entropy was not reduced.",
    Verdict.LIKELY: "The text shows waste; ΔH is undecided, undefined or was not measured.",
    Verdict.HINT: "Only the use of the result speaks against the call.",
    Verdict.NONE: "Nothing in the text speaks against the call, or it reduced entropy.",
}


def meanings() -> dict[str, dict[str, str]]:
    """Plain words for every class and verdict, for tooltips and legends."""
    return {
        "classes": {waste.value: text for waste, text in CLASSES.items()},
        "verdicts": {verdict.value: text for verdict, text in VERDICTS.items()},
    }


def waste_tables(data: ReportData) -> list[dict[str, Any]]:
    """For each evaluation with calls: calls of each arm by verdict, and by class."""
    tables = []
    for name in data.evaluation_names:
        arms = [
            {"arm": i, **_counts(arm.evaluations[name].rows), "savings": _savings(arm.evaluations[name])}
            for i, arm in enumerate(data.columns)
            if name in arm.evaluations and arm.evaluations[name].rows
        ]
        if arms:
            saves = any(level["calls"] for arm in arms for level in arm["savings"]["levels"])
            assumptions = list(dict.fromkeys(line for arm in arms for line in arm["savings"]["assumptions"]))
            tables.append({"evaluation": name, "arms": arms, "saves": saves, "assumptions": assumptions})
    return tables


def _savings(evaluation: Evaluation) -> dict[str, Any]:
    """Both levels of evidence, each number with the text that shows it; null where a price or a time is unknown."""
    report = evaluation.savings
    levels = {"certified": report.certified}
    if report.certified_and_likely.calls > report.certified.calls:
        levels["certified and likely"] = report.certified_and_likely
    return {
        "levels": [{"name": name, **asdict(saved), "texts": _texts(saved)} for name, saved in levels.items()],
        "currency": evaluation.costs.currency,
        "assumptions": list(report.assumptions),
    }


def _texts(saved: Savings) -> dict[str, str]:
    """Numbers as they are shown: whole tokens, two decimals of seconds, four digits of small sums of money."""
    tokens = {key: number(getattr(saved, key), 0) for key in ("call_tokens", "result_tokens", "prompt_tokens")}
    money = {key: money_text(getattr(saved, key)) for key in ("money", "money_with_cache")}
    return {**tokens, **money, "seconds": number(saved.seconds, 2 if saved.seconds < 100 else 0)}


def money_text(amount: float) -> str:
    """Two decimals; four of less than one unit."""
    return number(amount, 2 if not amount or amount >= 1 else 4)


def _counts(rows: Iterable[CallRow]) -> dict[str, Any]:
    """Calls by verdict, and for each class those certified, likely, and those that reduced entropy all the same."""
    verdicts, classes = Counter[Verdict](), Counter[tuple[Waste, Verdict]]()
    for row in rows:
        verdicts[row.verdict] += 1
        classes.update((waste, row.verdict) for waste in row.waste)
    return {
        "calls": verdicts.total(),
        "verdicts": {verdict.value: verdicts[verdict] for verdict in Verdict},
        "classes": [
            {"waste": waste.value, **{verdict.value: classes[waste, verdict] for verdict in Verdict}}
            for waste in Waste
            if any(classes[waste, verdict] for verdict in Verdict)
        ],
    }

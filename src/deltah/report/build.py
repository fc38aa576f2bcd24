"""Report data to payload: plain JSON values that the page shows and the JSON twin repeats.

Everything the page says stands in the payload; templates and charts only draw it. Every string is made inert on the
way, once, here. Order and rounding are fixed, and no clock is read: the same input gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from deltah.calls.grading import outcome_meaning, outcome_title
from deltah.core.metrics import CALLS, OUTCOME, REDUCTION_RATE, SIGNAL_MEAN, SIGNAL_STD, CollapseMonitor
from deltah.core.signals import SIGNALS
from deltah.core.types import FloatArray
from deltah.report.data import START, SUBSETS, ArmData, ReportData
from deltah.report.sections import PageSignal, call_tables, headline, meanings, page_signal, waste_table
from deltah.report.study_section import study_section
from deltah.report.viewer import choose, pack
from deltah.report.viewer_record import inert_tree
from deltah.runs.directory import nan_to_none, run_signal
from deltah.stats.bootstrap import LEVEL
from deltah.stats.summary import RESAMPLES, Statistics, Summary, compare, summarise
from deltah.stats.tables import DIFFERENCE_COLUMNS, GRADED_COLUMNS, PAGE_COLUMNS, SPLIT_COLUMNS, table
from deltah.text_format import count

SCHEMA_VERSION: Final = 2
CURVES: Final = (  # "{outcome}" and "{signal}" stand for their titles
    (OUTCOME, "{outcome} while sampling"),
    (CALLS, "calls per trajectory"),
    (REDUCTION_RATE, "reduction rate m / n"),
    (SIGNAL_MEAN, "mean {signal}"),
)
MAX_FACT_CHARS: Final = 2_000
SMOOTHING_SHARE: Final = 0.15
"""Width of the moving mean of a learning curve, as a share of its points."""


def build(data: ReportData) -> dict[str, Any]:
    """Assemble the payload of a report.

    Args:
        data: Arms, start and facts.

    Returns:
        Strict-JSON values only: no NaN, no lone surrogate, no invisible control character.
    """
    names, graders = data.evaluation_names, data.graders
    signal, viewer = page_signal(data), pack(data, *choose(data))
    outcome = {"graded": bool(graders), "title": outcome_title(graders), "meaning": outcome_meaning(graders)}
    summaries = {name: {label: _summaries(data, name, where) for label, where in SUBSETS.items()} for name in names}
    timed = any(arm.seconds is not None for arm in data.columns)
    columns = dict.fromkeys(SUBSETS, SPLIT_COLUMNS) | {"all": PAGE_COLUMNS if timed else PAGE_COLUMNS[:-1]}
    figures = (headline(data, signal, name, found["all"]) for name, found in summaries.items())
    differences = (_differences(data, outcome, signal, name) for name in names)
    planes = (_plane(data, outcome, name, found["all"]) for name, found in summaries.items())
    waste = (waste_table(data, name) for name in names)
    payload = {
        "schema_version": SCHEMA_VERSION,
        "title": data.title,
        "arms": [_arm(data, arm, index) for index, arm in enumerate(data.columns)],
        "noun": data.noun,
        "trained": data.trained,
        "notes": [note[:MAX_FACT_CHARS] for note in (*data.notes, *_shared_notes(data))],
        "outcome": outcome,
        "signal": signal.as_dict(),
        "evaluations": list(names),
        "overview": [
            {"evaluation": name, "subset": label, **_table(data, outcome, signal, found, columns[label])}
            for name, subsets in summaries.items()
            for label, found in subsets.items()
            if found and (label == "all" or all(subsets.values()))  # else the split repeats the whole
        ],
        "headline": next((found for found in figures if found), None),
        "differences": [found for found in differences if found],
        "plane": [found for found in planes if found],
        "curves": _curves(data, outcome),
        "calls": [call_tables(data, name) for name in names],
        "waste": {"meanings": meanings(signal), "tables": [found for found in waste if found]},
        "study": _studies(data, viewer),
        "facts": _facts(data, signal),
    }
    # The viewer's part is inert and strict already: its size was measured as it will stand in the page.
    return {**inert_tree(nan_to_none(payload)), "viewer": viewer}


def _shared_notes(data: ReportData) -> list[str]:
    """Notes that hold of each of several arms, and are said once."""
    first, *others = data.arms
    return [note for note in first.notes if others and all(note in arm.notes for arm in others)]


def _arm(data: ReportData, arm: ArmData, index: int) -> dict[str, Any]:
    return {
        "index": index,
        "name": arm.name,
        "start": bool(data.start) and index == 0,
        "seconds": arm.seconds,
        "config": {str(key): str(value)[:MAX_FACT_CHARS] for key, value in sorted(arm.config.items())},
        "trajectories": {name: len(evaluation) for name, evaluation in arm.evaluations.items()},
        "notes": [note[:MAX_FACT_CHARS] for note in arm.notes if note not in _shared_notes(data)],
        "problems": [problem[:500] for problem in arm.problems],
        "n_problems": arm.n_problems,
        "alarms": alarms(arm.metrics),
    }


def alarms(metrics: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the collapse monitor says of logged metrics, one sentence an alarm."""
    monitor, found = CollapseMonitor(), list[str]()
    for row in metrics:
        watched = {key: float(row[key]) for key in (CALLS, OUTCOME, SIGNAL_STD) if _is_number(row.get(key))}
        if watched:
            found += [f"step {row.get('step', '?')}: {alarm}" for alarm in monitor.update(watched)]
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _summaries(data: ReportData, evaluation: str, where: str) -> dict[str, Summary]:
    """Summary of each arm that has such trajectories."""
    tables = {arm.name: arm.evaluations[evaluation].table for arm in data.columns if evaluation in arm.evaluations}
    found = {name: summarise(table, where=where, seed=data.seed) for name, table in tables.items()}
    return {name: summary for name, summary in found.items() if summary.trajectories}


def _table(
    data: ReportData,
    outcome: Mapping[str, Any],
    signal: PageSignal,
    summaries: Mapping[str, Statistics],
    columns: Sequence[str],
    *,
    signed: bool = False,
) -> dict[str, Any]:
    """Columns and rows of one table; without any outcome, the columns that need one are left out."""
    content = table(
        summaries,
        seconds={arm.name: arm.seconds for arm in data.columns},
        columns=tuple(key for key in columns if outcome["graded"] or key not in GRADED_COLUMNS),
        signed=signed,
        outcome=outcome["title"],
        signal=signal.entry,
    )
    index = {arm.name: i for i, arm in enumerate(data.columns)}
    return {
        "columns": [{"key": c.key, "title": c.title, "unit": c.unit} for c in content.columns],
        "rows": [
            {
                "arm": index[row.name],
                "questions": getattr(summaries[row.name], "questions", None),
                "cells": [
                    {
                        "text": cell.text,
                        "interval": cell.interval,
                        "n": getattr(cell.estimate, "n", None),
                        "left_out": getattr(cell.estimate, "left_out", 0),
                    }
                    for cell in row.cells
                ],
                "all": {name: estimate.as_dict() for name, estimate in summaries[row.name].items()},
            }
            for row in content.rows
        ],
    }


def _reference(data: ReportData, evaluation: str) -> ArmData | None:
    """What the others are compared with: outcome-only training, else the start, of an experiment; else the first."""
    present = [arm for arm in data.columns if arm.evaluations.get(evaluation)]
    # A log of such a name is nothing but that.
    names = ("outcome", START) if data.trained else ()
    named = [arm for name in names for arm in present if arm.name == name]
    return next(iter([*named, *present]), None)


def _differences(
    data: ReportData, outcome: Mapping[str, Any], signal: PageSignal, evaluation: str
) -> dict[str, Any] | None:
    """Paired differences of every arm from the reference."""
    reference = _reference(data, evaluation)
    if reference is None:
        return None
    base, found = reference.evaluations[evaluation].table, {}
    for arm in data.columns:
        own = arm.evaluations.get(evaluation)
        if arm.name != reference.name and own is not None:
            difference = compare(base, own.table, seed=data.seed)
            if difference.questions:
                found[arm.name] = difference
    if not found:
        return None
    shown = _table(data, outcome, signal, found, DIFFERENCE_COLUMNS, signed=True)
    return {"evaluation": evaluation, "reference": reference.name, **shown}


def _plane(
    data: ReportData, outcome: Mapping[str, Any], evaluation: str, summaries: Mapping[str, Summary]
) -> dict[str, Any] | None:
    """One point an arm: calls per trajectory against the outcome; arms without grades have no place."""
    points = [
        {"arm": i, "x": summary.calls_per_trajectory.as_dict(), "y": summary.outcome.as_dict()}
        for i, arm in enumerate(data.columns)
        if (summary := summaries.get(arm.name)) and math.isfinite(summary.outcome.value)
    ]
    return {"evaluation": evaluation, "outcome": outcome["title"], "points": points} if points else None


def _curves(data: ReportData, outcome: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Learning curves: raw values and their centred moving mean."""
    curves = []
    for key, title in CURVES:
        series = [found for i, arm in enumerate(data.columns) if (found := _series(arm, i, key))]
        if series:
            named = title.format(outcome=outcome["title"], signal=_trained_on(data))
            curves.append({"key": key, "title": named, "series": series})
    return curves


def _trained_on(data: ReportData) -> str:
    """Title and unit of the signal that the runs logged, which need not be the one that the page is scored by."""
    names = {run_signal(arm.config).name for arm in data.columns if arm.metrics}
    return SIGNALS.resolve(names.pop()).with_unit if len(names) == 1 else "signal"


def _series(arm: ArmData, index: int, key: str) -> dict[str, Any] | None:
    points = [
        (float(row["step"]), float("nan") if row.get(key) is None else float(row[key]))
        for row in arm.metrics
        if key in row and (row[key] is None or _is_number(row[key])) and _is_number(row.get("step"))
    ]
    raw = np.array([value for _, value in points])
    if not np.isfinite(raw).any():
        return None
    steps = [step for step, _ in points]
    smooth = moving_mean(raw, max(1, round(len(raw) * SMOOTHING_SHARE)))
    return {"arm": index, "steps": steps, "raw": np.round(raw, 6).tolist(), "smooth": np.round(smooth, 6).tolist()}


def moving_mean(values: FloatArray, width: int) -> FloatArray:
    """Centred mean over `width` points (made odd), fewer at the ends; NaN points are skipped.

    Args:
        values: (N,)
        width: Points of the window.
    """
    half = width // 2
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    means = [float(np.mean(w[np.isfinite(w)])) if np.isfinite(w).any() else float("nan") for w in windows]
    return np.array(means)


def _studies(data: ReportData, viewer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A section for each study, its failure cases linked to the trajectories that the viewer holds."""
    found = list[dict[str, Any]]()
    for i, arm in enumerate(data.columns):
        if arm.study is None:
            continue
        title = f"Pilot study, {arm.name}" if len(data.columns) > 1 else "Pilot study"
        # Of several trajectories with one id the first one is linked.
        links = {t["id"]: t["key"] for t in reversed(viewer["trajectories"]) if t["arm"] == i}
        anchor = f"study-{len(found) + 1}" if found else "study"
        found.append(study_section(arm.study, links, anchor=anchor, title=title))
    return found


def _facts(data: ReportData, signal: PageSignal) -> dict[str, Any]:
    """What the footer says of the numbers: caller's facts, and what the trajectories themselves state."""
    every = [evaluation for arm in data.columns for evaluation in arm.evaluations.values()]
    temperatures = sorted({found for e in every for found in e.met("temperature")})
    derived = {
        "trajectories": f"{sum(map(len, every)):,}",
        "entropy estimator": ", ".join(sorted({found for e in every for found in e.met("estimator")})),
        "temperature": ", ".join(f"{value:g}" for value in temperatures) or "not stated by the source",
        "intervals": f"{LEVEL:.0%}, cluster bootstrap by question, {RESAMPLES:,} resamples, seed {data.seed}",
    }
    if signal.fact:
        derived["signal"] = signal.fact
    counted = "SELECT count(*) FROM trajectories WHERE spans = 'approximate'"
    approximate = sum(n for e in every for (n,) in e.rows(counted))
    if approximate:
        found = count(approximate, "trajectory")
        derived["approximate spans"] = f"{found}: borders of reasoning and calls are estimated"
    return {**derived, **{key: str(value)[:MAX_FACT_CHARS] for key, value in data.facts.items()}}

"""Report data to payload: plain JSON values that the page shows and the JSON twin repeats.

Everything the page says stands in the payload; templates and charts only draw it. Every string is made inert on the
way, once, here. Order and rounding are fixed, and no clock is read: the same input gives the same bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from deltah.core.metrics import CALLS, DELTA_H_MEAN, DELTA_H_STD, OUTCOME, REDUCTION_RATE, CollapseMonitor
from deltah.core.types import FloatArray, Trajectory
from deltah.study.bootstrap import LEVEL, Estimate
from deltah.study.calls import CallRow, call_rows, calls_by, histogram, histogram_edges, summarise_calls
from deltah.study.report.data import START, ArmData, ReportData, Scored
from deltah.study.report.safe import inert_tree
from deltah.study.report.viewer import choose, pack
from deltah.study.summary import RESAMPLES, Statistics, Summary, compare, summarise
from deltah.study.tables import DIFFERENCE_COLUMNS, PAGE_COLUMNS, SPLIT_COLUMNS, Table, estimate_cell, table
from deltah.traces.rundir import nan_to_none

SCHEMA_VERSION: Final = 1
CURVES: Final = (
    (OUTCOME, "F1 (outcome) while sampling"),
    (CALLS, "calls per question"),
    (REDUCTION_RATE, "reduction rate m / n"),
    (DELTA_H_MEAN, "mean ΔH, nats"),
)
SUBSETS: Final = (("all", None), ("tools needed", True), ("no tool needed", False))
"""Label, and the value of metadata["needs_tools"]."""
MAX_TOOLS: Final = 20
MAX_ROUNDS: Final = 8
"""Round indices shown one by one; later ones share a row."""
MAX_FACT_CHARS: Final = 2_000
MAX_NAME_CHARS: Final = 100
SMOOTHING_SHARE: Final = 0.15
"""Width of the moving mean of a learning curve, as a share of its points."""


def build(data: ReportData) -> dict[str, Any]:
    """Assemble the payload of a report.

    Args:
        data: Arms, start and facts.

    Returns:
        Strict-JSON values only: no NaN, no lone surrogate, no invisible control character.
    """
    summaries = {
        name: {label: _summaries(data, name, needs) for label, needs in SUBSETS} for name in data.evaluation_names
    }
    picks, note = choose(data)
    payload = {
        "schema_version": SCHEMA_VERSION,
        "title": data.title,
        "arms": [_arm(data, arm, index) for index, arm in enumerate(data.columns)],
        "evaluations": list(data.evaluation_names),
        "overview": [
            _overview(data, name, label, found)
            for name, subsets in summaries.items()
            for label, found in subsets.items()
            if found and (label == "all" or _is_split(subsets))
        ],
        "differences": [found for name in data.evaluation_names if (found := _differences(data, name))],
        "plane": [found for name, subsets in summaries.items() if (found := _plane(data, name, subsets["all"]))],
        "curves": _curves(data),
        "calls": [_calls(data, name) for name in data.evaluation_names],
        "facts": _facts(data),
    }
    # The viewer's part is inert and strict already: its size was measured as it will stand in the page.
    return {**inert_tree(nan_to_none(payload)), "viewer": pack(data, picks, note)}


def _arm(data: ReportData, arm: ArmData, index: int) -> dict[str, Any]:
    return {
        "index": index,
        "name": arm.name,
        "start": bool(data.start) and index == 0,
        "seconds": arm.seconds,
        "config": {str(key): str(value)[:MAX_FACT_CHARS] for key, value in sorted(arm.config.items())},
        "trajectories": {name: len(scored) for name, scored in arm.evaluations.items()},
        "problems": [problem[:500] for problem in arm.problems],
        "n_problems": arm.n_problems,
        "alarms": alarms(arm.metrics),
    }


def alarms(metrics: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the collapse monitor says of logged metrics, one sentence an alarm."""
    monitor, found = CollapseMonitor(), list[str]()
    for row in metrics:
        watched = {key: float(row[key]) for key in (CALLS, OUTCOME, DELTA_H_STD) if _is_number(row.get(key))}
        if watched:
            found += [f"step {row.get('step', '?')}: {alarm}" for alarm in monitor.update(watched)]
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _summaries(data: ReportData, evaluation: str, needs_tools: bool | None) -> dict[str, Summary]:
    """Summary of each arm that has trajectories of this kind."""
    found = {}
    for arm in data.columns:
        scored = _subset(arm.evaluations.get(evaluation, ()), needs_tools)
        if scored:
            trajectories, signals = zip(*scored, strict=True)
            found[arm.name] = summarise(trajectories, signals, seed=data.seed)
    return found


def _subset(scored: Iterable[Scored], needs_tools: bool | None) -> list[Scored]:
    return [pair for pair in scored if needs_tools is None or _needs(pair[0]) is needs_tools]


def _needs(trajectory: Trajectory) -> bool | None:
    value = trajectory.metadata.get("needs_tools")
    return None if value is None else bool(value)


def _is_split(subsets: Mapping[str, Mapping[str, Summary]]) -> bool:
    """Whether some questions are known to need tools and others not to: else the split repeats the whole."""
    return all(subsets[label] for label, needs in SUBSETS if needs is not None)


def _overview(data: ReportData, evaluation: str, subset: str, summaries: Mapping[str, Summary]) -> dict[str, Any]:
    seconds = {arm.name: arm.seconds for arm in data.columns}
    trained = any(value is not None for value in seconds.values())
    columns = (PAGE_COLUMNS if trained else PAGE_COLUMNS[:-1]) if subset == "all" else SPLIT_COLUMNS
    content = _table(data, table(summaries, seconds=seconds, columns=columns), summaries)
    return {"evaluation": evaluation, "subset": subset, **content}


def _table(data: ReportData, content: Table, summaries: Mapping[str, Statistics]) -> dict[str, Any]:
    index = {arm.name: i for i, arm in enumerate(data.columns)}
    return {
        "columns": [{"key": c.key, "title": c.title, "unit": c.unit} for c in content.columns],
        "rows": [
            {
                "arm": index[row.name],
                "questions": getattr(summaries[row.name], "questions", None),
                "cells": [{"text": c.text, "interval": c.interval, **_estimate(c.estimate)} for c in row.cells],
                "all": {name: estimate.as_dict() for name, estimate in summaries[row.name].items()},
            }
            for row in content.rows
        ],
    }


def _estimate(estimate: Estimate | None) -> dict[str, Any]:
    return {"n": getattr(estimate, "n", None), "left_out": getattr(estimate, "left_out", 0)}


def _reference(data: ReportData, evaluation: str) -> ArmData | None:
    """What the other arms are compared with: outcome-only training, else the start, else the first arm."""
    present = [arm for arm in data.columns if arm.evaluations.get(evaluation)]
    named = [arm for name in ("outcome", START) for arm in present if arm.name == name]
    return next(iter([*named, *present]), None)


def _differences(data: ReportData, evaluation: str) -> dict[str, Any] | None:
    """Paired differences of every arm from the reference."""
    reference = _reference(data, evaluation)
    if reference is None:
        return None
    trajectories, signals = zip(*reference.evaluations[evaluation], strict=True)
    found = {}
    for arm in data.columns:
        scored = arm.evaluations.get(evaluation, ())
        if arm is not reference and arm.name != reference.name and scored:
            others, theirs = zip(*scored, strict=True)
            difference = compare(trajectories, others, signals_a=signals, signals_b=theirs, seed=data.seed)
            if difference.questions:
                found[arm.name] = difference
    if not found:
        return None
    content = _table(data, table(found, columns=DIFFERENCE_COLUMNS, signed=True), found)
    return {"evaluation": evaluation, "reference": reference.name, **content}


def _plane(data: ReportData, evaluation: str, summaries: Mapping[str, Summary]) -> dict[str, Any] | None:
    """One point an arm: calls per question against F1; arms without grades have no place."""
    points = [
        {"arm": i, "x": summary.calls_per_question.as_dict(), "y": summary.f1.as_dict()}
        for i, arm in enumerate(data.columns)
        if (summary := summaries.get(arm.name)) and math.isfinite(summary.f1.value)
    ]
    return {"evaluation": evaluation, "points": points} if points else None


def _curves(data: ReportData) -> list[dict[str, Any]]:
    """Learning curves: raw values and their centred moving mean."""
    curves = []
    for key, title in CURVES:
        series = [found for i, arm in enumerate(data.columns) if (found := _series(arm, i, key))]
        if series:
            curves.append({"key": key, "title": title, "series": series})
    return curves


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
    return {"arm": index, "steps": steps, "raw": _rounded(raw), "smooth": _rounded(smooth)}


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


def _rounded(values: FloatArray) -> list[float]:
    return [round(float(value), 6) for value in values]


def _calls(data: ReportData, evaluation: str) -> dict[str, Any]:
    """Calls by tool and by round index, and the histogram of ΔH, for each arm."""
    rows = {
        i: call_rows(arm.evaluations[evaluation])
        for i, arm in enumerate(data.columns)
        if arm.evaluations.get(evaluation)
    }
    edges = histogram_edges(row for listed in rows.values() for row in listed)
    return {
        "evaluation": evaluation,
        "by_tool": _by_tool(rows, data.seed),
        "by_round": _by_round(rows, data.seed),
        "edges": _rounded(edges),
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
    rest = f"{len(order) - MAX_TOOLS} other names"
    shown = {name: name[:MAX_NAME_CHARS] if i < MAX_TOOLS else rest for i, name in enumerate(order)}
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
    rate, delta = estimate_cell(summary.reduction_rate, 2), estimate_cell(summary.delta_h, 3, signed=True)
    return {
        "arm": arm,
        "name": name,
        "n": summary.n,
        "errors": summary.errors,
        "unanswered": summary.unanswered,
        "undecided": summary.undecided,
        "undefined": summary.undefined,
        "reduction_rate": {"text": rate.text, "interval": rate.interval, **summary.reduction_rate.as_dict()},
        "delta_h": {"text": delta.text, "interval": delta.interval, **summary.delta_h.as_dict()},
    }


def _facts(data: ReportData) -> dict[str, Any]:
    """What the footer says of the numbers: caller's facts, and what the trajectories themselves state."""
    every = [scored[0] for arm in data.columns for listed in arm.evaluations.values() for scored in listed]
    temperatures = sorted({t.temperature for t in every if t.temperature is not None})
    derived = {
        "trajectories": f"{len(every):,}",
        "entropy estimator": ", ".join(sorted({t.estimator.value for t in every})),
        "temperature": ", ".join(f"{value:g}" for value in temperatures) or "not stated by the source",
        "intervals": f"{LEVEL:.0%}, cluster bootstrap by question, {RESAMPLES:,} resamples, seed {data.seed}",
    }
    approximate = sum(t.spans.value == "approximate" for t in every)
    if approximate:
        derived["approximate spans"] = f"{approximate:,} trajectories: borders of reasoning and calls are estimated"
    return {**derived, **{key: str(value)[:MAX_FACT_CHARS] for key, value in data.facts.items()}}

"""Report data to page: a payload of plain JSON values, one self-contained HTML file, and its JSON twin.

Templates and charts only draw what the payload says; its strings are made inert here, once. The same input gives the
same bytes. A content security policy lets the page's own script run, named by its hash: no other script, no request.
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from deltah.calls.grading import outcome_meaning, outcome_title
from deltah.core.metrics import CALLS, OUTCOME, REDUCTION_RATE, SIGNAL_MEAN, SIGNAL_STD, CollapseMonitor
from deltah.core.signals import SIGNALS
from deltah.core.types import FloatArray
from deltah.errors import DataError, InvalidValueError
from deltah.report import charts
from deltah.report.data import START, SUBSETS, ArmData, ReportData, choose
from deltah.report.sections import PageSignal, call_tables, headline, meanings, page_signal, study_section, waste_table
from deltah.report.viewer import compact_json, inert_tree, pack, script_json
from deltah.runs import nan_to_none, run_signal, write_atomic
from deltah.stats.bootstrap import LEVEL, Cell
from deltah.stats.summary import RESAMPLES, STATISTICS, Statistics, Summary, compare, summarise, table
from deltah.text_format import count

SCHEMA_VERSION: Final = 2
CURVES: Final = (  # "{outcome}" and "{signal}" stand for their titles
    (OUTCOME, "{outcome} while sampling"),
    (CALLS, "calls per trajectory"),
    (REDUCTION_RATE, "reduction rate m / n"),
    (SIGNAL_MEAN, "mean {signal}"),
)
MAX_FACT_CHARS: Final = 2_000
PAGE_COLUMNS: Final = (
    *("outcome", "accuracy", "calls_per_trajectory", "correct_per_call"),
    *("reduction_rate", "mean_value", "waste", "seconds"),
)
SPLIT_COLUMNS: Final = ("outcome", "calls_per_trajectory", "correct_per_call")
GRADED_COLUMNS: Final = frozenset({"outcome", "accuracy", "correct_per_call"})
"""Those that say nothing where no trajectory has an outcome."""
SMOOTHING_SHARE: Final = 0.15
"""Width of the moving mean of a learning curve, as a share of its points."""
ENTROPY_LEVELS: Final = (0.02, 0.1, 0.25, 0.5, 0.8, 1.2, 1.8, 2.6)
"""Upper edges in nats of the viewer's colour classes; fixed, so that pages compare."""
TEMPLATES: Final = resources.files("deltah.report") / "templates"


def write_report(data: ReportData, out_html: str | Path) -> None:
    """Write a page whose name ends in `.html` and, beside it, a file in `.json` with the same data."""
    out = Path(out_html)
    if out.suffix.lower() != ".html":
        raise InvalidValueError(f"the report's file name is {out.name!r}; expected one that ends in .html")
    payload = build(data)
    page, twin = render(payload), compact_json(payload) + "\n"
    try:
        write_atomic(out, page)
        write_atomic(out.with_suffix(".json"), twin)
    except OSError as error:
        raise DataError(
            f"cannot write {out}: {error.strerror or error}; choose another place or free some space"
        ) from error


def render(payload: Mapping[str, Any]) -> str:
    """The HTML page of a payload."""
    # The parts of the viewer's script in the order of their names, in one scope of their own.
    parts = sorted(file.name for file in (TEMPLATES / "viewer").iterdir() if file.name.endswith(".js"))
    script = "\n".join(('"use strict";', "{", *(_source(f"viewer/{name}") for name in parts), "}", ""))
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            p=payload,
            arms=charts.with_classes(payload["arms"]),
            charts=charts,
            plane_limits=charts.plane_limits(payload["plane"]) if payload["plane"] else {},
            value_limits=_value_limits(payload),
            levels=ENTROPY_LEVELS,
            # Package files and escaped JSON: the only text that enters the page unescaped.
            style=Markup(_source("style.css")),
            script=Markup(script),
            script_hash=b64encode(sha256(script.encode()).digest()).decode(),
            data_json=Markup(script_json(payload)),
            levels_json=Markup(script_json(list(ENTROPY_LEVELS))),
        )
    )


def environment() -> Environment:
    """The page's templates."""
    loader = PackageLoader("deltah.report", "templates")
    templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    templates.trim_blocks = templates.lstrip_blocks = True
    templates.globals["count"] = count
    return templates


def _source(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _value_limits(payload: Mapping[str, Any]) -> tuple[float, float]:
    """Common range of the bars of the mean signal: symmetric, as wide as the groups of ten calls or more need."""
    groups = [group for calls in payload["calls"] for group in (*calls["by_tool"], *calls["by_round"])]
    means = [group["mean"] for group in groups if group["n"] >= 10]
    values = [abs(mean[key]) for mean in means for key in ("value", "low", "high") if mean[key] is not None]
    limit = max(values, default=1.0) or 1.0
    return -limit, limit


def build(data: ReportData) -> dict[str, Any]:
    """The payload of a report: strict-JSON values, without lone surrogates and invisible control characters."""
    names, graders = data.evaluation_names, data.graders
    signal, arms = page_signal(data), [arm.name for arm in data.columns]
    viewer = pack(*choose(data), arms=arms, evaluations=names)
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
        "alarms": list(_alarms(arm.metrics)),
    }


def _alarms(metrics: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Alarms of the collapse monitor on logged metrics, one sentence each."""
    monitor = CollapseMonitor()
    for row in metrics:
        stated = {key: row.get(key) for key in (CALLS, OUTCOME, SIGNAL_STD)}
        if watched := {key: float(value) for key, value in stated.items() if isinstance(value, int | float)}:
            yield from (f"step {row.get('step', '?')}: {alarm}" for alarm in monitor.update(watched))


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
    shown, rows = table(
        summaries,
        seconds={arm.name: arm.seconds for arm in data.columns},
        columns=[key for key in columns if outcome["graded"] or key not in GRADED_COLUMNS],
        signed=signed,
        outcome=outcome["title"],
        signal=signal.entry,
    )
    index = {arm.name: i for i, arm in enumerate(data.columns)}
    return {
        "columns": [{"key": c.key, "title": c.title, "unit": c.unit} for c in shown],
        "rows": [
            {
                "arm": index[name],
                "questions": summaries[name].questions,
                "cells": list(map(_cell, cells)),
                "all": {key: getattr(summaries[name], key).as_dict() for key in STATISTICS},
            }
            for name, cells in rows.items()
        ],
    }


def _cell(cell: Cell) -> dict[str, Any]:
    n, left_out = (None, 0) if cell.estimate is None else (cell.estimate.n, cell.estimate.left_out)
    return {"text": cell.text, "interval": cell.interval, "n": n, "left_out": left_out}


def _differences(
    data: ReportData, outcome: Mapping[str, Any], signal: PageSignal, evaluation: str
) -> dict[str, Any] | None:
    """Paired differences of every arm from outcome-only training, else the start, of an experiment; else the first."""
    tables = {arm.name: e.table for arm in data.columns if (e := arm.evaluations.get(evaluation))}
    if not tables:
        return None
    # A log of such a name is nothing but that.
    named = [name for name in ("outcome", START) if data.trained and name in tables]
    reference = next(iter([*named, *tables]))
    base = tables.pop(reference)
    compared = {name: compare(base, own, seed=data.seed) for name, own in tables.items()}
    found = {name: difference for name, difference in compared.items() if difference.questions}
    if not found:
        return None
    shown = _table(data, outcome, signal, found, PAGE_COLUMNS[:-1], signed=True)
    return {"evaluation": evaluation, "reference": reference, **shown}


def _plane(
    data: ReportData, outcome: Mapping[str, Any], evaluation: str, summaries: Mapping[str, Summary]
) -> dict[str, Any] | None:
    """Calls per trajectory against the outcome, one point per graded arm."""
    points = [
        {"arm": i, "x": summary.calls_per_trajectory.as_dict(), "y": summary.outcome.as_dict()}
        for i, arm in enumerate(data.columns)
        if (summary := summaries.get(arm.name)) and math.isfinite(summary.outcome.value)
    ]
    return {"evaluation": evaluation, "outcome": outcome["title"], "points": points} if points else None


def _curves(data: ReportData, outcome: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Learning curves: raw values and their centred moving mean."""
    # The signal that the runs logged need not be the one that the page is scored by.
    names = {run_signal(arm.config).name for arm in data.columns if arm.metrics}
    signal = SIGNALS.resolve(names.pop()).with_unit if len(names) == 1 else "signal"
    curves = []
    for key, title in CURVES:
        series = [found for i, arm in enumerate(data.columns) if (found := _series(arm, i, key))]
        if series:
            named = title.format(outcome=outcome["title"], signal=signal)
            curves.append({"key": key, "title": named, "series": series})
    return curves


def _series(arm: ArmData, index: int, key: str) -> dict[str, Any] | None:
    rows = [row for row in arm.metrics if key in row and isinstance(row[key], int | float | None)]
    logged = [row for row in rows if isinstance(row.get("step"), int | float)]
    raw = np.array([row[key] for row in logged], dtype=np.float64)  # None becomes NaN
    if not np.isfinite(raw).any():
        return None
    steps = [float(row["step"]) for row in logged]
    smooth = moving_mean(raw, max(1, round(len(raw) * SMOOTHING_SHARE)))
    return {"arm": index, "steps": steps, "raw": np.round(raw, 6).tolist(), "smooth": np.round(smooth, 6).tolist()}


def moving_mean(values: FloatArray, width: int) -> FloatArray:
    """(N,) centred mean over `width` points (made odd), fewer at the ends; NaN points are skipped."""
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
    """The footer: what the trajectories state, and the caller's facts."""
    every = data.every_evaluation
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
    if approximate := sum(n for e in every for (n,) in e.rows(counted)):
        found = count(approximate, "trajectory")
        derived["approximate spans"] = f"{found}: borders of reasoning and calls are estimated"
    return {**derived, **{key: str(value)[:MAX_FACT_CHARS] for key, value in data.facts.items()}}

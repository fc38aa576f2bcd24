"""A pilot study as a section of the page: plain values that the template shows and `study_charts` draws.

Takes a `StudyResult` and the keys under which the viewer holds trajectories, and returns strict-JSON values with every
string made inert. It computes no statistic: digits and signs come from `deltah.stats.markdown`, the numbers from
the study.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from deltah.report.record import inert_tree
from deltah.runs.directory import nan_to_none
from deltah.stats.associations import Association
from deltah.stats.bootstrap import Estimate
from deltah.stats.figures import ROC_SIGNALS, Failure
from deltah.stats.markdown import (
    COLUMNS,
    FAILURE_TITLES,
    TESTS,
    cells,
    computed,
    finding,
    label_note,
    method_notes,
    result_size,
    signal_note,
    signal_title,
    size_note,
)
from deltah.stats.study import StudyResult
from deltah.stats.table import CALL_INDEX
from deltah.stats.tables import estimate_cell, number, tool_title

MAX_NAME_CHARS: Final = 200
MAX_LABELS_DRAWN: Final = 6
"""Labels with a figure of their own; the tables hold all."""
DIGITS: Final = 2
"""Of the page's tables, so that all columns fit; the files have more."""
_COLOURS: Final = 7


def study_section(
    result: StudyResult, links: Mapping[str, str], *, anchor: str = "study", title: str = "Pilot study"
) -> dict[str, Any]:
    """Values of one section.

    Args:
        result: The study.
        links: Viewer key of each trajectory that the page lets the reader open, by trajectory id.
        anchor: Id of the section, unique on the page.
        title: Its heading.

    Returns:
        Strict-JSON values.
    """
    labels = [name for name in result.labels if computed(result.of_label(name))]
    drawn = labels[:MAX_LABELS_DRAWN]
    section = {
        "anchor": anchor,
        "title": title,
        "size": result_size(result),
        "findings": [found for name in labels if (found := finding(result.of_label(name)))],
        "histograms": _histograms(result, drawn),
        "rocs": [_roc_panel(result, name) for name in drawn if any(c.label == name for c in result.rocs)],
        "positions": _positions(result, drawn),
        "columns": [name for _, name in (*COLUMNS, *TESTS)],
        "tables": [_table(name, result.of_label(name)) for name in result.labels],
        "failures": [
            {
                "title": heading,
                "total": result.failure_counts[kind],
                "rows": [_failure(f, links) for f in result.failures if f.kind is kind],
            }
            for kind, heading in FAILURE_TITLES.items()
        ],
        "signals": [[name, signal_note(name)] for name in dict.fromkeys(a.signal for a in result.associations)],
        "notes": [*method_notes(result), *result.notes],
    }
    values: dict[str, Any] = inert_tree(nan_to_none(section))
    return values


def _shown(estimate: Estimate) -> str:
    return str(estimate_cell(estimate, 2))


def _histograms(result: StudyResult, labels: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "label": h.label,
            "edges": h.edges,
            "good": h.good,
            "other": h.other,
            "left_out": h.left_out,
        }
        for h in result.histograms
        if h.label in labels and any(h.good) and any(h.other)
    ]


def _roc_panel(result: StudyResult, label: str) -> dict[str, Any]:
    aucs = {a.signal: a.auc for a in result.of_label(label)}
    curves = [
        {
            "name": signal_title(c.signal),
            "class": "a0" if c.signal == CALL_INDEX else f"a{1 + ROC_SIGNALS.index(c.signal) % _COLOURS}",
            "auc": _shown(aucs[c.signal]),
            "x": c.false_positive_rate,
            "y": c.true_positive_rate,
        }
        for c in result.rocs
        if c.label == label
    ]
    return {"label": label, "curves": curves}


def _positions(result: StudyResult, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Two panels over the call index: mean reduction, and the label rates."""
    rows = result.positions
    reduction = [_series("−ΔH", "a1", [row.reduction for row in rows])]
    graded = {a.label for a in result.associations if a.graded}
    rates = [
        _series(name, f"a{1 + i % _COLOURS}", [row.labels[name] for row in rows])
        for i, name in enumerate(name for name in labels if name not in graded)
    ]
    indices = [row.index for row in rows]
    panels = [
        {"title": "Mean reduction −ΔH, nats", "indices": indices, "series": reduction, "zero": True},
        {"title": "Share of good calls", "indices": indices, "series": rates, "zero": False},
    ]
    return [panel for panel, shown in zip(panels, (reduction, rates), strict=True) if any(map(_measured, shown))]


def _measured(series: Mapping[str, Any]) -> bool:
    return any(math.isfinite(estimate["value"]) for estimate in series["values"])


def _series(name: str, colour: str, estimates: Sequence[Estimate]) -> dict[str, Any]:
    return {"name": name, "class": colour, "values": [estimate.as_dict() for estimate in estimates]}


def _table(label: str, rows: Sequence[Association]) -> dict[str, Any]:
    return {
        "label": label,
        "note": label_note(label),
        "size": size_note(rows),
        "rows": [
            {
                "signal": signal_title(a.signal),
                "baseline": a.signal == CALL_INDEX,
                "n": f"{a.spearman.n:,}",
                "reason": a.reason,
                "cells": [] if a.reason else [{"text": c.text, "interval": c.interval} for c in cells(a, DIGITS)],
            }
            for a in rows
        ]
        if computed(rows)
        else [],
    }


def _failure(f: Failure, links: Mapping[str, str]) -> dict[str, Any]:
    key = links.get(f.trajectory)
    return {
        "trajectory": f.trajectory[:MAX_NAME_CHARS],
        "link": None if key is None else f"#t={quote(key, safe='')}&at=r{f.index}",
        "tool": tool_title(f.tool[:MAX_NAME_CHARS]),
        "index": f.index,
        "reduction": number(f.reduction, 3, signed=True),
    }

"""A study as a section of the page: plain values that the template shows, and the drawings made of them.

No statistic is computed here: words, digits and signs come from `deltah.stats.study_text`, the numbers from the study.
Colour is never alone: good calls stand above the axis and others below it, curves carry markers of different shapes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final
from urllib.parse import quote

from markupsafe import Markup

from deltah.report.charts import Scale, bin_labels, element, frame, line, marker, path, svg, text, ticks
from deltah.report.viewer_record import inert_tree
from deltah.runs.directory import nan_to_none
from deltah.stats.bootstrap import Estimate
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
from deltah.stats.tables import number, tool_title

MAX_NAME_CHARS: Final = 200
MAX_LABELS_DRAWN: Final = 6
"""Labels with a figure of their own; the tables hold all."""
DIGITS: Final = 2
"""Of the page's tables, so that all columns fit; the files have more."""
_COLOURS: Final = 7
_ROW: Final = 20
"""Pixels of a legend's line."""


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
        Strict-JSON values, every string made inert.
    """
    tables = label_tables(result, DIGITS)
    drawn = [table for table in tables if table.rows][:MAX_LABELS_DRAWN]
    section = {
        "anchor": anchor,
        "title": title,
        "size": result_size(result),
        "findings": [table.finding for table in tables if table.rows and table.finding],
        "histograms": [
            {"label": h.label, "edges": h.edges, "good": h.good, "other": h.other, "left_out": h.left_out}
            for h in result.histograms
            if h.label in [table.label for table in drawn] and any(h.good) and any(h.other)
        ],
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
    values: dict[str, Any] = inert_tree(nan_to_none(section))
    return values


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
    reduction = [_series("−ΔH", "a1", [row.reduction for row in rows])]
    rates = [_series(n, f"a{1 + i % _COLOURS}", [row.labels[n] for row in rows]) for i, n in enumerate(names)]
    indices = [row.index for row in rows]
    panels: list[dict[str, Any]] = [
        {"title": "Mean reduction −ΔH, nats", "indices": indices, "series": reduction, "zero": True},
        {"title": "Share of good calls", "indices": indices, "series": rates, "zero": False},
    ]
    return [p for p in panels if any(math.isfinite(e["value"]) for s in p["series"] for e in s["values"])]


def _series(name: str, colour: str, estimates: Sequence[Estimate]) -> dict[str, Any]:
    return {"name": name, "class": colour, "values": [estimate.as_dict() for estimate in estimates]}


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
        "trajectory": f.trajectory[:MAX_NAME_CHARS],
        "link": None if key is None else f"#t={quote(key, safe='')}&at=r{f.index}",
        "tool": tool_title(f.tool[:MAX_NAME_CHARS]),
        "index": f.index,
        "reduction": number(f.reduction, 3, signed=True),
    }


def quality_peak(panels: Iterable[Mapping[str, Any]]) -> float:
    """Largest share of any bar, so that the panels compare."""
    return max((max(counts) / sum(counts) for p in panels for counts in (p["good"], p["other"])), default=1.0)


def quality_histogram(panel: Mapping[str, Any], peak: float) -> Markup:
    """Reduction of good calls above the axis, of the others below it, each in shares of its own calls.

    Args:
        panel: An entry of section["histograms"].
        peak: See `quality_peak`.
    """
    width, height, bottom = 320, 210, 30
    edges = panel["edges"]
    x, middle = Scale(edges[0], edges[-1], 8, width - 8), (height - bottom) / 2
    reach = Scale(0, peak or 1, 0, middle - 14)
    parts = []
    for kind, up, colour in (("good", True, "a1"), ("other", False, "a2")):
        total = sum(panel[kind])
        for low, high, count in zip(edges[:-1], edges[1:], panel[kind], strict=True):
            tall = reach(count / total)
            span = {"x": x(low) + 0.5, "width": max(x(high) - x(low) - 1, 0.5)}
            parts.append(
                element("rect", **span, y=middle - tall if up else middle, height=tall, class_=f"col {colour}")
            )
        parts.append(text(f"{kind}, n = {total:,}", 8, 12 if up else height - bottom - 4, class_=f"label {colour}"))
    parts += [line(x.start, middle, x.stop, middle, "grid"), line(x(0), 4, x(0), height - bottom, "zero")]
    parts += bin_labels(edges, x, height - 12)
    return svg(width, height, f"Entropy reduction in nats by {panel['label']}", parts)


def roc(panel: Mapping[str, Any]) -> Markup:
    """ROC curves of one label with their AUCs.

    Args:
        panel: An entry of section["rocs"].
    """
    width, height, left, top, bottom = 560, 334, 44, 24, 44
    x, y = Scale(0, 1, left, left + height - top - bottom), Scale(0, 1, height - bottom, top)
    marks = (0.0, 0.25, 0.5, 0.75, 1.0)
    parts = frame(x, y, marks, marks, width, height, bottom)
    parts.append(text("false positive rate", (x.start + x.stop) / 2, height - 6, class_="axis", anchor="middle"))
    parts.append(text("true positive rate", left - 34, 12, class_="axis"))
    parts.append(line(x(0), y(0), x(1), y(1), "lead"))
    for i, c in enumerate(panel["curves"]):
        parts.append(path(c["x"], c["y"], x, y, f"smooth {c['class']}"))
        parts.append(marker(*_crossing(c, x, y), c["class"], 4.6))
        at = top + 18 + i * (_ROW + 14)
        parts.append(marker(x.stop + 22, at - 4, c["class"], 4.6))
        parts.append(text(c["name"], x.stop + 34, at, class_=f"label {c['class']}"))
        parts.append(text(c["auc"], x.stop + 34, at + 15, class_="tick"))
    return svg(width, height, f"ROC curves for {panel['label']}", parts)


def _crossing(curve: Mapping[str, Any], x: Scale, y: Scale) -> tuple[float, float]:
    """Where a curve crosses the falling diagonal: the place at which curves lie farthest apart."""
    for (a0, b0), (a1, b1) in pairwise(zip(curve["x"], curve["y"], strict=True)):
        if a1 + b1 >= 1.0:
            share = (1.0 - a0 - b0) / max(a1 + b1 - a0 - b0, 1e-12)
            return x(a0 + share * (a1 - a0)), y(b0 + share * (b1 - b0))
    return x(1.0), y(1.0)


def by_index(panel: Mapping[str, Any]) -> Markup:
    """Series over the call index, each point with its interval.

    Args:
        panel: An entry of section["positions"].
    """
    width, height, left, top, bottom = 560, 250, 52, 12, 44
    series, n = panel["series"], len(panel["indices"])
    values = [e[k] for s in series for e in s["values"] for k in ("value", "low", "high") if e[k] is not None]
    y_ticks = ticks(min([*values, 0.0]), max([*values, 0.0]), 5) if panel["zero"] else ticks(0.0, 1.0, 5)
    y = Scale(y_ticks[0], y_ticks[-1], height - bottom, top)
    x = Scale(-0.5, n - 0.5, left, width - 150)
    parts = frame(x, y, (), y_ticks, width, height, bottom)
    for i, index in enumerate(panel["indices"]):
        parts.append(text(index.replace(" and later", "+"), x(i), height - 26, class_="tick", anchor="middle"))
    parts.append(text("call index", (x.start + x.stop) / 2, height - 6, class_="axis", anchor="middle"))
    if panel["zero"]:
        parts.append(line(x.start, y(0), x.stop, y(0), "zero"))
    for j, s in enumerate(series):
        shift = (j - (len(series) - 1) / 2) * min(0.12, 0.6 / len(series))
        at = top + 14 + j * _ROW
        parts += _points(s, [i + shift for i in range(n)], x, y)
        parts.append(marker(x.stop + 14, at - 4, s["class"], 4.6))
        parts.append(text(s["name"][:18], x.stop + 26, at, class_=f"label {s['class']}"))
    return svg(width, height, f"{panel['title']} by call index", parts)


def _points(series: Mapping[str, Any], places: Sequence[float], x: Scale, y: Scale) -> list[Markup]:
    """A line with gaps where nothing was measured, intervals, and markers on top."""
    colour, values = series["class"], series["values"]
    measured = [(x(i), e) for i, e in zip(places, values, strict=True) if e["value"] is not None]
    bars = [line(at, y(e["low"]), at, y(e["high"]), f"bar {colour}") for at, e in measured if e["low"] is not None]
    marks = [marker(at, y(e["value"]), colour, 4.2) for at, e in measured]
    return [path(places, [e["value"] for e in values], x, y, f"raw {colour}"), *bars, *marks]

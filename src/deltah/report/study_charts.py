"""Charts of the study's section: mirrored histograms by quality, ROC curves, series over the call index.

Drawn from the values of `deltah.report.study_section`. Colour is never alone: good calls stand above the axis and
others below it, curves carry markers of different shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from markupsafe import Markup

from deltah.report.charts import Scale, element, frame, line, marker, svg, text, tick_labels, ticks

GOOD, OTHER = "a1", "a2"
"""Colour classes."""
_ROW: Final = 20
"""Pixels of a legend's line."""


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
    for counts, up, colour in ((panel["good"], True, GOOD), (panel["other"], False, OTHER)):
        total = sum(counts)
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
            tall = reach(count / total)
            span = {"x": x(low) + 0.5, "width": max(x(high) - x(low) - 1, 0.5)}
            parts.append(
                element("rect", **span, y=middle - tall if up else middle, height=tall, class_=f"col {colour}")
            )
        word = f"{'good' if up else 'other'}, n = {total:,}"
        parts.append(text(word, 8, 12 if up else height - bottom - 4, class_=f"label {colour}"))
    parts += [line(x.start, middle, x.stop, middle, "grid"), line(x(0), 4, x(0), height - bottom, "zero")]
    labels = [v for v in ticks(edges[0], edges[-1], 5) if edges[0] * 0.999 <= v <= edges[-1] * 0.999]
    for value, label in zip(labels, tick_labels(labels), strict=True):
        parts.append(text(label, x(value), height - 12, class_="tick", anchor="middle"))
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
        points = "L".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(c["x"], c["y"], strict=True))
        parts.append(element("path", d=f"M{points}", class_=f"smooth {c['class']}"))
        parts.append(marker(*_crossing(c, x, y), c["class"], 4.6))
        at = top + 18 + i * (_ROW + 14)
        parts.append(marker(x.stop + 22, at - 4, c["class"], 4.6))
        parts.append(text(c["name"], x.stop + 34, at, class_=f"label {c['class']}"))
        parts.append(text(c["auc"], x.stop + 34, at + 15, class_="tick"))
    return svg(width, height, f"ROC curves for {panel['label']}", parts)


def _crossing(curve: Mapping[str, Any], x: Scale, y: Scale) -> tuple[float, float]:
    """Where a curve crosses the falling diagonal: the place at which curves lie farthest apart."""
    points = list(zip(curve["x"], curve["y"], strict=True))
    for (a0, b0), (a1, b1) in pairwise(points):
        if a1 + b1 >= 1.0:
            share = (1.0 - a0 - b0) / max(a1 + b1 - a0 - b0, 1e-12)
            return x(a0 + share * (a1 - a0)), y(b0 + share * (b1 - b0))
    return x(points[-1][0]), y(points[-1][1])


def by_index(panel: Mapping[str, Any]) -> Markup:
    """Series over the call index, each point with its interval.

    Args:
        panel: An entry of section["positions"].
    """
    width, height, left, top, bottom = 560, 250, 52, 12, 44
    series, n = panel["series"], len(panel["indices"])
    values = [e[k] for s in series for e in s["values"] for k in ("value", "low", "high") if e[k] is not None]
    y_ticks = ticks(min([*values, 0.0]) if panel["zero"] else 0.0, max([*values, 0.0]) if panel["zero"] else 1.0, 5)
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
        parts += _points(s, x, y, shift)
        at = top + 14 + j * _ROW
        parts.append(marker(x.stop + 14, at - 4, s["class"], 4.6))
        parts.append(text(s["name"][:18], x.stop + 26, at, class_=f"label {s['class']}"))
    return svg(width, height, f"{panel['title']} by call index", parts)


def _points(series: Mapping[str, Any], x: Scale, y: Scale, shift: float) -> list[Markup]:
    """A line with gaps where nothing was measured, intervals, and markers on top."""
    bars, marks, pieces = list[Markup](), list[Markup](), list[list[str]]([[]])
    for i, e in enumerate(series["values"]):
        if e["value"] is None:
            pieces.append([])
            continue
        at, level = x(i + shift), y(e["value"])
        pieces[-1].append(f"{at:.1f},{level:.1f}")
        if e["low"] is not None:
            bars.append(line(at, y(e["low"]), at, y(e["high"]), f"bar {series['class']}"))
        marks.append(marker(at, level, series["class"], 4.2))
    lines = [_path(piece, series["class"]) for piece in pieces if len(piece) > 1]
    return [*lines, *bars, *marks]


def _path(points: Sequence[str], colour: str) -> Markup:
    return element("path", d="M" + "L".join(points), class_=f"raw {colour}")

"""The page's charts as inline SVG, drawn from the payload; no statistic is computed here.

Colours come from CSS classes (`a0` ... `a7`, one per arm) so that the page's themes apply. The marker's shape, or the
place above and below an axis, repeats what a colour says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup, escape

ARM_COLOURS: Final = 8
PLANE_SIZE: Final = (520, 368)
"""Of the chart of outcome against calls, in pixels."""
MINUS: Final = "\N{MINUS SIGN}"
_CHAR: Final = 7.2
"""Width of a label's character in pixels, for placing labels."""
_ROW: Final = 20
"""Pixels of a legend's line."""


def element(tag: str, *content: str | Markup, **attributes: str | float) -> Markup:
    """One element; `class_` and `text_anchor` become `class` and `text-anchor`, numbers get two decimals."""
    named = ((key.rstrip("_").replace("_", "-"), escape(_plain(value))) for key, value in attributes.items())
    written = "".join(f' {name}="{value}"' for name, value in named)
    # Only names of this module's callers and escaped values reach the markup.
    return Markup(f"<{tag}{written}>{''.join(map(escape, content))}</{tag}>")


def _plain(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


def text(content: str, x: float, y: float, *, class_: str = "", anchor: str = "start") -> Markup:
    """A text element."""
    return element("text", content, x=x, y=y, class_=class_, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A line element."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def svg(width: float, height: float, label: str, parts: Iterable[Markup], class_: str = "chart") -> Markup:
    """The outer element, scaled by its container and named for screen readers."""
    box = f"0 0 {_plain(width)} {_plain(height)}"
    return element("svg", element("title", label), *parts, viewBox=box, role="img", class_=class_, aria_label=label)


@dataclass(frozen=True, slots=True)
class Scale:
    """Linear map of [low, high] to [start, stop] in pixels."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Pixel of a value, within the ends."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + min(1.0, max(0.0, share)) * (self.stop - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from below `low` to above `high`."""
    if not high - low > 1e-9 * max(abs(low), abs(high)):  # equal but for rounding
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Labels with as few decimals as tell the ticks apart."""
    step = values[1] - values[0] if len(values) > 1 else 1.0
    digits = next((d for d in range(12) if abs(round(step, d) - step) < 1e-6 * abs(step)), 12)
    return [f"{value + 0.0:.{digits}f}".replace("-", MINUS) for value in values]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones, at least `gap` apart where [low, high] has room for that."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [0.0] * len(wanted)
    for i in order:
        placed[i] = low = max(wanted[i], low)
        low += gap
    for i in reversed(order):
        placed[i] = high = min(placed[i], high)
        high -= gap
    return placed


def with_classes(arms: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add its colour class to each of the payload's arms; `a0` is the neutral colour of the start."""
    first = 1 if any(arm["start"] for arm in arms) else 0
    classes = ["a0", *(f"a{i % (ARM_COLOURS - 1) + 1}" for i in range(len(arms)))]
    return [{**arm, "class": classes[arm["index"] + 1 - first]} for arm in arms]


def marker(x: float, y: float, arm: str, r: float = 5.5) -> Markup:
    """Circle, square, triangle or diamond, by the arm's colour class."""
    corners = {
        1: ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        2: ((0, -1.25), (1.2, 0.9), (-1.2, 0.9)),
        3: ((0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)),
    }.get(int(arm[1:]) % 4)
    if corners is None:
        return element("circle", cx=x, cy=y, r=r, class_=f"mark {arm}")
    points = " ".join(f"{x + r * 0.92 * dx:.2f},{y + r * 0.92 * dy:.2f}" for dx, dy in corners)
    return element("polygon", points=points, class_=f"mark {arm}")


def plane(
    panel: Mapping[str, Any], arms: Sequence[Mapping[str, Any]], limits: Mapping[str, tuple[float, float]]
) -> Markup:
    """Outcome against calls per trajectory: a cross of 95 % intervals per arm, a thin line from the start to each."""
    (width, height), left, top, bottom = PLANE_SIZE, 52, 28, 44
    name, points = panel["outcome"], panel["points"]
    names = [_short(arms[p["arm"]]["name"]) for p in points]
    x_ticks, y_ticks = ticks(*limits["x"]), ticks(*limits["y"])
    x = Scale(x_ticks[0], x_ticks[-1], left, width - 28 - _CHAR * max(map(len, names)))
    y = Scale(y_ticks[0], y_ticks[-1], height - bottom, top)
    parts = frame(x, y, x_ticks, y_ticks, "calls per trajectory")
    parts.append(text(name, max(left - 8, _CHAR * len(name)), top - 14, class_="axis", anchor="end"))
    start = next((p for p in points if arms[p["arm"]]["start"]), None)
    if start is not None:
        origin = x(start["x"]["value"]), y(start["y"]["value"])
        parts += [line(*origin, x(p["x"]["value"]), y(p["y"]["value"]), "lead") for p in points if p is not start]
    # Names stand beside the plane in the order of their marks, the upper mark's above the lower one's.
    places = spread([y(p["y"]["value"]) for p in points], 17, top + 6, height - bottom)
    for point, name, at in zip(points, names, places, strict=True):
        arm = arms[point["arm"]]["class"]
        parts += _cross(point, x, y, arm)
        parts += legend(name, x.stop + 14, at, arm)
    return svg(width, height, f"{panel['outcome']} against calls per trajectory, {panel['evaluation']}", parts)


def legend(name: str, x: float, y: float, arm: str) -> list[Markup]:
    """A marker, and its name on the right."""
    return [marker(x, y, arm, 4.6), text(name, x + 12, y + 4, class_=f"label {arm}")]


def plane_limits(panels: Iterable[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Common axis ranges of all panels."""
    limits = {}
    for axis in ("x", "y"):
        ends = [v for panel in panels for p in panel["points"] for v in p[axis].values() if isinstance(v, float)]
        limits[axis] = (min(ends), max(ends))
    return limits


def _cross(point: Mapping[str, Any], x: Scale, y: Scale, arm: str) -> list[Markup]:
    cx, cy = x(point["x"]["value"]), y(point["y"]["value"])
    parts = []
    if point["x"]["low"] is not None:
        parts.append(line(x(point["x"]["low"]), cy, x(point["x"]["high"]), cy, f"bar {arm}"))
    if point["y"]["low"] is not None:
        parts.append(line(cx, y(point["y"]["low"]), cx, y(point["y"]["high"]), f"bar {arm}"))
    return [*parts, marker(cx, cy, arm)]


def _short(name: str, limit: int = 22) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def frame(x: Scale, y: Scale, x_ticks: Sequence[float], y_ticks: Sequence[float], x_title: str) -> list[Markup]:
    """Horizontal rules, the labels of both axes, and the title of the horizontal one."""
    parts = axis_labels(x, x_ticks, y.start + 18)
    parts.append(text(x_title, (x.start + x.stop) / 2, y.start + 38, class_="axis", anchor="middle"))
    for value, label in zip(y_ticks, tick_labels(y_ticks), strict=True):
        parts.append(line(x.start, y(value), x.stop, y(value), "grid"))
        parts.append(text(label, x.start - 8, y(value) + 4, class_="tick", anchor="end"))
    return parts


def axis_labels(x: Scale, values: Sequence[float], y: float) -> list[Markup]:
    """Numbers under an axis."""
    texts = zip(values, tick_labels(values), strict=True)
    return [text(label, x(value), y, class_="tick", anchor="middle") for value, label in texts]


def curve(panel: Mapping[str, Any], arms: Sequence[Mapping[str, Any]]) -> Markup:
    """One learning curve: raw values faint, their moving mean strong, each arm named at its end."""
    width, height, left, top, bottom = 520, 250, 52, 14, 44
    series = panel["series"]
    names = [_short(arms[s["arm"]]["name"], 16) for s in series]
    right = 14 + _CHAR * max(len(name) for name in names)
    values = [v for s in series for v in s["raw"] if v is not None]
    steps = [v for s in series for v in s["steps"]]
    y_ticks = ticks(min(values), max(values), 4)
    y = Scale(y_ticks[0], y_ticks[-1], height - bottom, top)
    x = Scale(min(steps), max(max(steps), min(steps) + 1), left, width - right)
    inside = [v for v in ticks(x.low, x.high, 5) if x.low <= v <= x.high]
    parts = frame(x, y, inside, y_ticks, "step")
    ends = []
    for s in series:
        arm = arms[s["arm"]]["class"]
        parts.append(path(s["steps"], s["raw"], x, y, f"raw {arm}"))
        parts.append(path(s["steps"], s["smooth"], x, y, f"smooth {arm}"))
        ends.append(y(next(v for v in reversed(s["smooth"]) if v is not None)))
    for s, name, at in zip(series, names, spread(ends, 15, top + 4, height - bottom), strict=True):
        parts.append(text(name, x.stop + 6, at + 4, class_=f"label {arms[s['arm']]['class']}"))
    return svg(width, height, panel["title"], parts)


def path(steps: Sequence[float], values: Sequence[float | None], x: Scale, y: Scale, class_: str) -> Markup:
    """A line with gaps where nothing was measured."""
    commands, pen = [], "M"
    for step, value in zip(steps, values, strict=True):
        if value is None:
            pen = "M"
            continue
        commands.append(f"{pen}{x(step):.1f},{y(value):.1f}")
        pen = "L"
    return element("path", d="".join(commands), class_=class_)


def histogram(panel: Mapping[str, Any], edges: Sequence[float], arm: str, peak: float, title: str) -> Markup:
    """Distribution of the signal in shares of the defined calls; bins below 0 in the arm's colour, the others grey.

    `edges` are (bins + 1,), `peak` is the largest share of any histogram of the row, so that the panels compare.
    """
    width, height, floor = 300, 150, 120
    total = sum(panel["counts"]) or 1
    x = Scale(edges[0], edges[-1], 8, width - 8)
    y = Scale(0, peak or 1, floor, 10)
    parts = []
    for low, high, count in zip(edges[:-1], edges[1:], panel["counts"], strict=True):
        parts.append(_column(x, low, high, y(count / total), floor, arm if high <= 1e-12 else "rest"))
    parts.append(line(x(0), 6, x(0), floor, "zero"))
    return svg(width, height, title, [*parts, *_bin_labels(edges, x, height - 12)])


def _column(x: Scale, low: float, high: float, top: float, bottom: float, class_: str) -> Markup:
    width = max(x(high) - x(low) - 1, 0.5)
    return element("rect", x=x(low) + 0.5, width=width, y=top, height=bottom - top, class_=f"col {class_}")


def _bin_labels(edges: Sequence[float], x: Scale, y: float) -> list[Markup]:
    """Labels of a histogram's axis."""
    inside = [v for v in ticks(edges[0], edges[-1], 5) if edges[0] * 0.999 <= v <= edges[-1] * 0.999]
    return axis_labels(x, inside, y)


def interval_bar(estimate: Mapping[str, Any], low: float, high: float, arm: str) -> Markup:
    """A point with its interval on [low, high], with a mark at 0 when that lies inside."""
    width, height = 104, 18
    x, middle = Scale(low, high, 4, width - 4), height / 2
    parts = [line(x.start, middle, x.stop, middle, "grid")]
    if low < 0 < high:
        parts.append(line(x(0), 2, x(0), height - 2, "zero"))
    if estimate["value"] is not None:
        if estimate["low"] is not None:
            parts.append(line(x(estimate["low"]), middle, x(estimate["high"]), middle, f"bar {arm}"))
        parts.append(marker(x(estimate["value"]), middle, arm, 3.6))
    return svg(width, height, "interval", parts, class_="spark")


def quality_peak(panels: Iterable[Mapping[str, Any]]) -> float:
    """Largest share of any bar, so that the panels compare."""
    return max((max(counts) / sum(counts) for p in panels for counts in (p["good"], p["other"])), default=1.0)


def quality_histogram(panel: Mapping[str, Any], peak: float) -> Markup:
    """Reduction of good calls above the axis, of the others below it, each in shares of its own calls."""
    width, height, floor = 320, 210, 180
    edges = panel["edges"]
    x, middle = Scale(edges[0], edges[-1], 8, width - 8), floor / 2
    reach = Scale(0, peak or 1, 0, middle - 14)
    parts = []
    for kind, up, colour in (("good", True, "a1"), ("other", False, "a2")):
        total = sum(panel[kind])
        for low, high, count in zip(edges[:-1], edges[1:], panel[kind], strict=True):
            tall = reach(count / total)
            ends = (middle - tall, middle) if up else (middle, middle + tall)
            parts.append(_column(x, low, high, *ends, colour))
        parts.append(text(f"{kind}, n = {total:,}", 8, 12 if up else floor - 4, class_=f"label {colour}"))
    parts += [line(x.start, middle, x.stop, middle, "grid"), line(x(0), 4, x(0), floor, "zero")]
    parts += _bin_labels(edges, x, height - 12)
    return svg(width, height, f"Entropy reduction in nats by {panel['label']}", parts)


def roc(panel: Mapping[str, Any]) -> Markup:
    """ROC curves of one label with their AUCs."""
    width, height, left, top, bottom = 560, 334, 44, 24, 44
    x, y = Scale(0, 1, left, left + height - top - bottom), Scale(0, 1, height - bottom, top)
    marks = (0.0, 0.25, 0.5, 0.75, 1.0)
    parts = frame(x, y, marks, marks, "false positive rate")
    parts.append(text("true positive rate", left - 34, 12, class_="axis"))
    parts.append(line(x(0), y(0), x(1), y(1), "lead"))
    for i, c in enumerate(panel["curves"]):
        parts.append(path(c["x"], c["y"], x, y, f"smooth {c['class']}"))
        # Marked where it is farthest from the diagonal.
        false, true = max(zip(c["x"], c["y"], strict=True), key=lambda point: abs(point[1] - point[0]))
        parts.append(marker(x(false), y(true), c["class"], 4.6))
        at = top + 18 + i * (_ROW + 14)
        parts += legend(c["name"], x.stop + 22, at - 4, c["class"])
        parts.append(text(c["auc"], x.stop + 34, at + 15, class_="tick"))
    return svg(width, height, f"ROC curves for {panel['label']}", parts)


def by_index(panel: Mapping[str, Any]) -> Markup:
    """Series over the call index, each point with its interval."""
    width, height, left, top, bottom = 560, 250, 52, 12, 44
    series, n = panel["series"], len(panel["indices"])
    values = [e[k] for s in series for e in s["values"] for k in ("value", "low", "high") if e[k] is not None]
    y_ticks = ticks(min([*values, 0.0]), max([*values, 0.0]), 5) if panel["zero"] else ticks(0.0, 1.0, 5)
    y = Scale(y_ticks[0], y_ticks[-1], height - bottom, top)
    x = Scale(-0.5, n - 0.5, left, width - 150)
    parts = frame(x, y, (), y_ticks, "call index")
    for i, index in enumerate(panel["indices"]):
        parts.append(text(index.replace(" and later", "+"), x(i), height - 26, class_="tick", anchor="middle"))
    if panel["zero"]:
        parts.append(line(x.start, y(0), x.stop, y(0), "zero"))
    for j, s in enumerate(series):
        shift = (j - (len(series) - 1) / 2) * min(0.12, 0.6 / len(series))
        at = top + 14 + j * _ROW
        parts += _points(s, [i + shift for i in range(n)], x, y)
        parts += legend(s["name"][:18], x.stop + 14, at - 4, s["class"])
    return svg(width, height, f"{panel['title']} by call index", parts)


def _points(series: Mapping[str, Any], places: Sequence[float], x: Scale, y: Scale) -> list[Markup]:
    """A line with gaps where nothing was measured, intervals, and markers on top."""
    colour, values = series["class"], series["values"]
    measured = [(x(i), e) for i, e in zip(places, values, strict=True) if e["value"] is not None]
    bars = [line(at, y(e["low"]), at, y(e["high"]), f"bar {colour}") for at, e in measured if e["low"] is not None]
    marks = [marker(at, y(e["value"]), colour, 4.2) for at, e in measured]
    return [path(places, [e["value"] for e in values], x, y, f"raw {colour}"), *bars, *marks]

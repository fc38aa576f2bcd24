"""The page's charts as inline SVG, drawn from the payload: outcome against calls, learning curves, histograms, bars.

Colours come from CSS classes (`a0` ... `a7`, one an arm) so that the page's light and dark themes apply; the marker's
shape repeats what the colour says.
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


def element(tag: str, *content: str | Markup, **attributes: str | float) -> Markup:
    """One element; `class_` and `text_anchor` become `class` and `text-anchor`, numbers get two decimals."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"' for key, value in attributes.items()
    )
    inner = "".join(escape(part) for part in content)
    # Only names of this module's callers and escaped values reach the markup.
    return Markup(f"<{tag}{written}>{inner}</{tag}>")


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
    title = element("title", label)
    return element(
        "svg",
        title,
        *parts,
        viewBox=f"0 0 {_plain(width)} {_plain(height)}",
        role="img",
        class_=class_,
        aria_label=label,
    )


@dataclass(frozen=True, slots=True)
class Scale:
    """Linear map of [low, high] to [start, stop] in pixels."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Pixel of a value; values beyond the ends stay at the ends."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, share)) * (self.stop - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from below `low` to above `high`."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Labels with just enough decimals to tell the ticks apart."""
    step = values[1] - values[0] if len(values) > 1 else 1.0
    digits = next((d for d in range(12) if abs(round(step, d) - step) < 1e-6 * abs(step)), 12)
    return [f"{value + 0.0:.{digits}f}".replace("-", MINUS) for value in values]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones, at least `gap` apart where [low, high] has room for that."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [0.0] * len(wanted)
    at = low - gap
    for i in order:
        at = max(wanted[i], at + gap)
        placed[i] = at
    limit = high
    for i in reversed(order):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
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
    """Outcome against calls per trajectory: one cross of 95 % intervals an arm, a thin line from the start to each.

    Args:
        panel: An entry of payload["plane"].
        arms: payload["arms"], each with its colour class.
        limits: {"x": (low, high), "y": (low, high)}, shared by all panels.
    """
    (width, height), left, top, bottom = PLANE_SIZE, 52, 28, 44
    name = panel["outcome"]
    x_ticks, y_ticks = ticks(*limits["x"]), ticks(*limits["y"])
    x = Scale(x_ticks[0], x_ticks[-1], left, width - 20)
    y = Scale(y_ticks[0], y_ticks[-1], height - bottom, top)
    parts = frame(x, y, x_ticks, y_ticks, width, height, bottom)
    parts.append(text("calls per trajectory", (x.start + x.stop) / 2, height - 6, class_="axis", anchor="middle"))
    parts.append(text(name, max(left - 8, _CHAR * len(name)), top - 14, class_="axis", anchor="end"))
    points = panel["points"]
    start = next((p for p in points if arms[p["arm"]]["start"]), None)
    if start is not None:
        origin = x(start["x"]["value"]), y(start["y"]["value"])
        parts += [line(*origin, x(p["x"]["value"]), y(p["y"]["value"]), "lead") for p in points if p is not start]
    for point in points:
        parts += _cross(point, x, y, arms[point["arm"]]["class"])
    title = f"{name} against calls per trajectory, {panel['evaluation']}"
    return svg(width, height, title, [*parts, *_labels(points, arms, x, y)])


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


def _labels(points: Sequence[Mapping[str, Any]], arms: Sequence[Mapping[str, Any]], x: Scale, y: Scale) -> list[Markup]:
    """Arm names beside their markers, in the nearest place that is still free, from the top mark to the lowest.

    Where marks are close, a name stands below those of the marks above its own and nearest to its own mark, so that
    none is read as another's.
    """
    marks = [(x(p["x"]["value"]), y(p["y"]["value"])) for p in points]
    taken: list[tuple[float, ...]] = [(cx - 8, cy - 8, cx + 8, cy + 8) for cx, cy in marks]
    for point, (cx, cy) in zip(points, marks, strict=True):
        if point["x"]["low"] is not None:
            taken.append((x(point["x"]["low"]), cy - 2, x(point["x"]["high"]), cy + 2))
        if point["y"]["low"] is not None:
            taken.append((cx - 2, y(point["y"]["high"]), cx + 2, y(point["y"]["low"])))
    names = [_short(arms[point["arm"]]["name"]) for point in points]
    placed: dict[int, tuple[float, ...]] = {}
    for i in sorted(range(len(points)), key=lambda i: (marks[i][1], marks[i][0])):
        (cx, cy), w = marks[i], _CHAR * len(names[i])
        boxes = [
            (left, base - 12, left + w, base + 3)
            for away in (0, 18, 36, 54, 72, 90)
            for left in (cx + 9, cx - 9 - w)
            for base in (cy - 9 - away, cy + 19 + away)
        ]
        inside = [b for b in boxes if b[0] > x.start - 4 and b[2] < x.stop + 16] or boxes
        above = [placed[j] for j in placed if marks[j][1] < cy]
        ordered = [b for b in inside if not any(_beside(a, b) and b[1] < a[3] for a in above)] or inside
        own = [b for b in ordered if all(_distance(b, (cx, cy)) <= _distance(b, mark) for mark in marks)] or ordered
        # The first free place, near ones first; else the one that covers least.
        placed[i] = min(own, key=lambda b: sum(_overlap(b, t) for t in taken))
        taken.append(placed[i])
    return [
        text(name, placed[i][0], placed[i][3] - 3, class_=f"label {arms[point['arm']]['class']}")
        for i, (point, name) in enumerate(zip(points, names, strict=True))
    ]


def _beside(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether two boxes share a column."""
    return a[0] < b[2] and b[0] < a[2]


def _distance(box: tuple[float, ...], mark: tuple[float, float]) -> float:
    """From the nearest point of a box."""
    x, y = mark
    return math.hypot(max(box[0] - x, 0.0, x - box[2]), max(box[1] - y, 0.0, y - box[3]))


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _short(name: str, limit: int = 22) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def frame(
    x: Scale, y: Scale, x_ticks: Sequence[float], y_ticks: Sequence[float], width: float, height: float, bottom: float
) -> list[Markup]:
    """Horizontal rules and the labels of both axes."""
    parts = []
    for value, label in zip(y_ticks, tick_labels(y_ticks), strict=True):
        parts.append(line(x.start, y(value), x.stop, y(value), "grid"))
        parts.append(text(label, x.start - 8, y(value) + 4, class_="tick", anchor="end"))
    for value, label in zip(x_ticks, tick_labels(x_ticks), strict=True):
        parts.append(text(label, x(value), height - bottom + 18, class_="tick", anchor="middle"))
    return parts


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
    parts = frame(x, y, inside, y_ticks, width, height, bottom)
    parts.append(text("step", (x.start + x.stop) / 2, height - 8, class_="axis", anchor="middle"))
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

    Args:
        panel: An entry of payload["calls"][...]["histograms"].
        edges: (bins + 1,) in the unit of the signal.
        arm: Colour class.
        peak: Largest share of any histogram of the row, so that the panels compare.
        title: Of the drawing.
    """
    width, height, bottom = 300, 150, 30
    total = sum(panel["counts"]) or 1
    x = Scale(edges[0], edges[-1], 8, width - 8)
    y = Scale(0, peak or 1, height - bottom, 10)
    parts = []
    for low, high, count in zip(edges[:-1], edges[1:], panel["counts"], strict=True):
        top = y(count / total)
        style = f"col {arm}" if high <= 1e-12 else "col rest"
        span = {"x": x(low) + 0.5, "width": max(x(high) - x(low) - 1, 0.5)}
        parts.append(element("rect", **span, y=top, height=max(y.start - top, 0), class_=style))
    parts.append(line(x(0), 6, x(0), height - bottom, "zero"))
    return svg(width, height, title, [*parts, *bin_labels(edges, x, height - 12)])


def bin_labels(edges: Sequence[float], x: Scale, y: float) -> list[Markup]:
    """Round values within the edges of a histogram, as labels of its axis."""
    labels = [v for v in ticks(edges[0], edges[-1], 5) if edges[0] * 0.999 <= v <= edges[-1] * 0.999]
    texts = zip(labels, tick_labels(labels), strict=True)
    return [text(label, x(value), y, class_="tick", anchor="middle") for value, label in texts]


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

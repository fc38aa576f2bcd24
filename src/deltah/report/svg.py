"""Inline SVG by hand: elements with escaped attributes, linear scales, round ticks, labels that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

MINUS = "\N{MINUS SIGN}"


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

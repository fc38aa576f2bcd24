"""Labels of the plane: each is read as the name of its own mark, however close the marks are."""

from __future__ import annotations

import itertools
import math
from xml.etree import ElementTree

import pytest

from deltah.report.charts import plane, with_classes

CHAR = 7.2
LIMITS = {"x": (0.0, 4.0), "y": (0.0, 1.0)}
STEPS = (-0.06, -0.03, 0.0, 0.03, 0.06)


def drawn(points: list[tuple[float, float]]) -> tuple[list[tuple[float, float]], list[tuple[str, float, float]]]:
    """Centres of the marks and, in the same order, names with the left end and the base of their labels, in pixels."""
    arms = with_classes([{"index": i, "name": f"run{i}", "start": False} for i in range(len(points))])
    entries = [
        {
            "arm": i,
            "x": {"value": x, "low": x - 0.4, "high": x + 0.4},
            "y": {"value": y, "low": y - 0.1, "high": y + 0.1},
        }
        for i, (x, y) in enumerate(points)
    ]
    panel = {"outcome": "F1", "evaluation": "logs", "points": entries}
    root = ElementTree.fromstring(str(plane(panel, arms, LIMITS)))
    # The two bars of a point cross at its mark.
    bars = [e for e in root.iter("line") if e.get("class", "").startswith("bar")]
    marks = [(float(v.get("x1", "")), float(h.get("y1", ""))) for h, v in zip(bars[::2], bars[1::2], strict=True)]
    labels = [e for e in root.iter("text") if e.get("class", "").startswith("label")]
    return marks, [(str(e.text), float(e.get("x", "")), float(e.get("y", ""))) for e in labels]


@pytest.mark.parametrize("step", STEPS)
def test_labels_of_close_marks_keep_the_order_of_their_marks(step: float) -> None:
    for across, up in itertools.product((-0.2, 0.0, 0.2), (-0.05, 0.0, 0.05)):
        marks, labels = drawn([(2.0, 0.5), (2.0 + across, 0.5 + up + step)])
        assert [name for name, _, _ in labels] == ["run0", "run1"]
        (_, left, base), (_, other_left, other_base) = labels
        if abs(left - other_left) < CHAR * 4 and marks[0][1] != marks[1][1]:
            assert (base < other_base) == (marks[0][1] < marks[1][1]), "the upper mark has the upper label"
        for mark, (_, x, y) in zip(marks, labels, strict=True):
            nearest = min(marks, key=lambda m: _distance(m, x, y))
            assert _distance(nearest, x, y) == pytest.approx(_distance(mark, x, y), abs=0.1), "beside its own mark"


def _distance(mark: tuple[float, float], left: float, base: float) -> float:
    """From a mark to the box of a label."""
    x, y = mark
    return math.hypot(max(left - x, 0.0, x - left - CHAR * 4), max(base - 12 - y, 0.0, y - base - 3))

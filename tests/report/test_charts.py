"""Names of the plane stand beside it, each in the place of its mark among the others."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree

import pytest

from deltah.report.charts import plane, with_classes

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
def test_names_stand_in_the_order_of_their_marks_and_apart(step: float) -> None:
    marks, labels = drawn([(2.0, 0.5), (2.2, 0.5 + step), (1.0, 0.9)])
    assert [name for name, _, _ in labels] == ["run0", "run1", "run2"]
    bases = [base for _, _, base in labels]
    assert min(abs(a - b) for a, b in itertools.combinations(bases, 2)) >= 17
    for (a, base_a), (b, base_b) in itertools.combinations(zip(marks, bases, strict=True), 2):
        assert a[1] == b[1] or (base_a < base_b) == (a[1] < b[1]), "the upper mark has the upper name"
    assert max(x for x, _ in marks) < min(left for _, left, _ in labels), "no name covers a mark"

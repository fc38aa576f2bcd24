"""A page of another signal than the method's names it wherever a number or a verdict of it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from builders import make_trajectory
from test_page import Page

from deltah import score
from deltah.core.metrics import SIGNAL_MEAN
from deltah.core.signals import SIGNALS
from deltah.report.data import ArmData, Evaluation, ReportData
from deltah.report.page import build, write_report

ROUNDS = ([[2.0], [1.0], [1.01]], [[1.0], [0.4]])


def arm(scored_by: str = "delta_h", margin: float | None = None, *, name: str = "a", **fields: Any) -> ArmData:
    trajectories = [make_trajectory(r, id=str(i), outcome=1.0, question=str(i)) for i, r in enumerate(ROUNDS)]
    evaluation = Evaluation.of((t, score(t, name=scored_by, margin=margin)) for t in trajectories)
    return ArmData(name=name, evaluations={"logs": evaluation}, **fields)


def page_text(folder: Path, *arms: ArmData) -> tuple[str, str, dict[str, Any]]:
    """All text of the page, that of its attributes, and the JSON twin."""
    write_report(ReportData(title="t", arms=arms), folder / "r.html")
    page = Page((folder / "r.html").read_text())
    attributes = " ".join(str(value) for _, found in page.tags for value in found.values())
    return "".join(page.texts), attributes, json.loads((folder / "r.json").read_text())


def test_every_signal_has_a_title_and_a_unit() -> None:
    assert SIGNALS["delta_h"].with_unit == "ΔH, nats"
    assert [name for name, entry in SIGNALS.items() if not entry.unit] == ["ratio"]
    assert all(entry.title and entry.meaning for entry in SIGNALS.values())


@pytest.mark.parametrize("margin", [None, 0.1])
def test_the_methods_own_signal_needs_no_word(tmp_path: Path, margin: float | None) -> None:
    text, attributes, twin = page_text(tmp_path, arm(margin=margin))
    assert "mean ΔH nats" in text
    assert "Distribution of ΔH, nats" in text
    assert "another signal" not in text
    assert "share of calls that certainly reduced entropy" in attributes
    assert "signal" not in twin["facts"]


def test_the_ratio_is_named_and_has_no_unit(tmp_path: Path) -> None:
    text, attributes, twin = page_text(tmp_path, arm("ratio", 0.1))
    assert "This page judges calls by another signal: ΔH ratio (ratio): " in text
    assert "mean ΔH ratio" in text
    assert "Distribution of ΔH ratio\n" in text
    assert "mean ΔH nats" not in text
    assert "ΔH, nats" not in text
    assert "share of calls whose ΔH ratio certainly lies below −0.100" in attributes
    assert "the whole interval of ΔH ratio says" in attributes
    assert "Histogram of ΔH ratio" in attributes
    assert not re.search("lowered entropy|reduced? entropy", text + attributes)
    assert (twin["signal"]["title"], twin["signal"]["unit"]) == ("ΔH ratio", "")
    assert twin["facts"]["signal"].endswith("margin 0.1")
    column = next(c for c in twin["overview"][0]["columns"] if c["key"] == "mean_value")
    assert (column["title"], column["unit"]) == ("mean ΔH ratio", "")


def test_a_signal_in_nats_has_its_own_title_and_margin(tmp_path: Path) -> None:
    text, attributes, twin = page_text(tmp_path, arm("entropy_before"))
    assert "mean −H before nats" in text
    assert "share of calls whose −H before certainly lies below −0.693 nats" in attributes
    assert twin["facts"]["signal"].endswith("margin 0.693 nats")


def test_runs_of_unlike_signals_share_no_title(tmp_path: Path) -> None:
    text, _, twin = page_text(tmp_path, arm("ratio", name="a"), arm("tail", name="b"))
    assert "mean signal" in text
    assert "mean ΔH" not in text
    assert twin["facts"]["signal"].startswith("a: ΔH ratio (ratio): ")
    assert "; b: tail ΔH (tail): " in twin["facts"]["signal"]


def test_a_curve_is_named_by_what_its_run_logged(tmp_path: Path) -> None:
    """The page's own signal does not change what was logged while training."""
    rows = tuple({"step": step, SIGNAL_MEAN: -0.1 * step} for step in (1, 2))
    logged = arm("tail", metrics=rows, config={"signal": {"name": "ratio"}})
    payload = build(ReportData(title="t", arms=(logged,)))
    assert [curve["title"] for curve in payload["curves"]] == ["mean ΔH ratio"]
    payload = build(ReportData(title="t", arms=(arm("tail", metrics=rows),)))
    assert [curve["title"] for curve in payload["curves"]] == ["mean ΔH, nats"]

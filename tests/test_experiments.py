"""The scripts behind docs/results/pilot.md: its groups and differences by hand; the page says what the numbers say."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from deltah import Segment, ToolCall, Trajectory
from deltah.core.types import CallStatus
from deltah.lab.questions import Lookup, Question
from deltah.lab.world import Relation
from deltah.tasks import Task

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module("pilot_probe")


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module("pilot_page")


def test_the_page_says_what_the_numbers_say(pages: ModuleType) -> None:
    content = json.loads((RESULTS / "pilot.json").read_text(encoding="utf-8"))
    saved = (RESULTS / "pilot.md").read_text(encoding="utf-8")
    assert pages.page(content) == saved, "write it again: python experiments/pilot_lab.py --page-only"


def trajectory(results: list[tuple[str, str | None]]) -> Trajectory:
    """Calls with their arguments and results."""
    calls = tuple(
        ToolCall(
            id=f"c{i}",
            name="search",
            arguments=said,
            turn=i,
            result=result,
            status=CallStatus.UNANSWERED if result is None else CallStatus.OK,
        )
        for i, (said, result) in enumerate(results)
    )
    segments = (Segment(kind="prompt", start=0, stop=1, turn=0),)
    return Trajectory(id="t", segments=segments, calls=calls)


def test_groups_of_calls(probes: ModuleType) -> None:
    plan = (
        Lookup(subject="Mira Kovel", relation=Relation.BIRTHPLACE, value="Port Anselm", known=False),
        Lookup(subject="Port Anselm", relation=Relation.COUNTRY, value="High Tavros", known=False),
    )
    question = Question(task=Task(id="q", question="?", golden_answers=("High Tavros",)), plan=plan)
    born, city = "Mira Kovel was born in Port Anselm.", "Port Anselm is a city in High Tavros."
    said = [("a", "nothing"), ("a", born), ("b", None), ("b", "nothing"), ("c", city), ("c", city)]
    assert probes.groups_of(trajectory(said), question) == {
        "c0": {"first, not needed"},
        "c1": {"needed", "needed, before the answer"},
        "c3": {"repeat"},
        "c4": {"needed", "needed, answering"},
        "c5": {"repeat"},
    }


def test_differences_of_means_by_question(probes: ModuleType) -> None:
    first = [{"question": f"q{i}", "x": float(i % 2)} for i in range(10)]
    second = [{"question": f"q{i}", "x": 2.0} for i in range(5, 15)] + [{"question": "q0", "x": None}]
    value, low, high = probes.mean_difference(first, second, "x")
    assert value == pytest.approx(0.5 - 2.0)
    assert low < value < high
    assert probes.mean(second, "x") == [2.0, 2.0, 2.0]


def row(**changes: Any) -> dict[str, Any]:
    return {"auc_within_index": [0.7, 0.6, 0.8, 50], "p_partial_holm": 0.02, **changes}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "yes"),
        ({"auc_within_index": [0.3, 0.2, 0.4, 50]}, "reversed"),
        ({"auc_within_index": [0.6, 0.49, 0.7, 50]}, "no"),
        ({"p_partial_holm": 0.06}, "no"),
        ({"auc_within_index": [0.6, None, None, 50]}, "untested"),
        ({"p_partial_holm": None}, "untested"),
    ],
)
def test_what_counts_as_a_finding(pages: ModuleType, changes: dict[str, Any], said: str) -> None:
    assert pages.tells(row(**changes)) == said


@pytest.mark.parametrize(
    ("sign", "fresh", "said"),
    [
        (1, [0.2, 0.1, 0.3], "**confirmed**"),
        (-1, [0.2, 0.1, 0.3], "**refuted**"),
        (1, [0.2, -0.1, 0.3], "not confirmed"),
        (0, [0.2, -0.1, 0.3], "no difference shown"),
        (0, [0.2, 0.1, 0.3], "**refuted**"),
        (1, [None, None, None], "untested"),
    ],
)
def test_verdicts(pages: ModuleType, sign: int, fresh: list[float | None], said: str) -> None:
    assert pages.waste_level({"sign": sign, "differences": {"fresh": fresh}}) == said


def test_the_page_of_bounds_says_what_its_numbers_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    content = json.loads((RESULTS / "topk.json").read_text(encoding="utf-8"))
    saved = (RESULTS / "topk.md").read_text(encoding="utf-8")
    written = importlib.import_module("topk_page").page(content["rows"], content["facts"])
    assert written == saved, "write it again: python experiments/topk_bounds.py --page-only"


@pytest.fixture
def bounds(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module("topk_bounds")


@pytest.mark.parametrize("printed", ["float64", "float32", "4 decimals"])
def test_what_is_seen_of_a_known_distribution_bounds_its_entropy(bounds: ModuleType, printed: str) -> None:
    """Twelve equal tokens and a drawn one that is listed or not: the entropy is known in closed form."""
    logp = np.full(12, -np.log(12))
    best, drawn = np.tile(np.pad(logp, (0, 88), constant_values=-60.0), (3, 1)), logp[:3]
    segments = (
        Segment(kind="reasoning", start=0, stop=1, turn=0),
        Segment(kind="result", start=1, stop=1, turn=0, text="r"),
        Segment(kind="reasoning", start=1, stop=3, turn=1),
    )
    call = ToolCall(id="a", name="search", arguments="{}", turn=0, result="r")
    skeleton = Trajectory(id="t", segments=segments, calls=(call,))
    exact = np.full(3, np.log(12))
    scored = bounds.Scored(skeleton, exact, best, drawn, best, drawn)
    for k in (1, 5, 20):
        found = bounds.seen(scored, k, printed, 200)
        lower, upper = found.entropy_bounds
        assert (lower <= exact).all()
        assert (exact <= upper).all()
        if k == 20:
            assert upper - lower == pytest.approx(0.0, abs=0.02)
    rows = [row for row in bounds.numbers([scored], "script", 200) if row["printed"] == printed]
    assert [row["violations"] for row in rows] == [0] * len(bounds.KS)
    assert [row["tokens"] for row in rows] == [3] * len(bounds.KS)

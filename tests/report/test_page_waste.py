"""Waste and savings as the page and its JSON twin show them, from trajectories counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deltah import Segment, SegmentKind, ToolCall, Trajectory, score
from deltah.calls.savings import Costs, Prices
from deltah.calls.table import CallTable
from deltah.calls.tool_kinds import ToolKinds
from deltah.report.data import ArmData, Evaluation, ReportData
from deltah.report.page import build, write_report
from deltah.report.viewer import Reason
from deltah.stats.summary import summarise

ANSWER = "Velmora is a city on the northern coast, founded by the river people a long time ago."


def searcher(entropies: list[float], name: str = "t", outcome: float | None = 1.0) -> Trajectory:
    """One search, asked again and again; r_k is one token of the given entropy, a call spells 3 tokens, a result 5."""
    segments, calls, h = list[Segment](), list[ToolCall](), list[float]()

    def add(kind: SegmentKind, turn: int, values: list[float]) -> None:
        segments.append(Segment(kind=kind, start=len(h), stop=len(h) + len(values), turn=turn))
        h.extend(values)

    for turn, entropy in enumerate(entropies):
        add(SegmentKind.REASONING, turn, [entropy])
        if turn + 1 < len(entropies):
            add(SegmentKind.CALL, turn, [0.1] * 3)
            add(SegmentKind.RESULT, turn, [np.nan] * 5)
            arguments = '{"query": "Velmora"}'
            calls.append(
                ToolCall(id=str(turn), name="search", arguments=arguments, turn=turn, result=ANSWER, duration_s=0.5)
            )
    texts = tuple(" Velmora" for _ in h)
    metadata = {"task_id": name}
    return Trajectory(
        id=name, segments=tuple(segments), calls=tuple(calls), entropy=h, token_texts=texts, outcome=outcome,
        metadata=metadata,
    )  # fmt: skip


def report(*trajectories: Trajectory, costs: Costs | None = None, measured: bool = True) -> ReportData:
    scored = [(t, score(t) if measured else None) for t in trajectories]
    logs = Evaluation.of(scored, costs=costs, tools=ToolKinds.of({"search": "read"}))
    return ReportData(title="t", arms=(ArmData(name="a", evaluations={"logs": logs}),))


def test_counts_by_verdict_and_class() -> None:
    """Three equal searches: the first reduces, the second does not, the third does. Only the second is waste."""
    payload = build(report(searcher([2.0, 1.0, 1.5, 0.5])))
    (arm,) = payload["waste"]["tables"][0]["arms"]
    assert arm["calls"] == 3
    assert arm["levels"] == {"certified": 1, "likely": 0, "hint": 0, "none": 2}
    (duplicates,) = payload["waste"]["tables"][0]["by_class"]["exact_duplicate"]
    assert (duplicates["certified"], duplicates["none"]) == (1, 1)
    group = payload["calls"][0]["by_round"]
    assert [(g["certified"], g["likely"]) for g in group] == [(0, 0), (1, 0), (0, 0)]
    record = payload["viewer"]["trajectories"][0]
    assert record["waste"] == {"certified": 1, "likely": 0, "hint": 0}
    cards = [card for block in record["blocks"] for card in block.get("calls", [])]
    assert [card.get("waste_level", "none") for card in cards] == ["none", "certified", "none"]
    assert cards[1]["waste"][0] == "exact_duplicate"


def test_without_entropies_waste_is_likely_and_nothing_is_certified() -> None:
    t = searcher([2.0, 1.0, 1.5])
    reads = {"search": "read"}
    s = summarise(CallTable.of([t], [None], tools=reads))
    assert (s.waste.value, s.waste.n) == (0.5, 2)
    assert np.isnan(s.certified_waste.value)
    assert s.certified_waste.left_out == 2
    measured = summarise(CallTable.of([t], tools=reads))
    assert (measured.waste.value, measured.certified_waste.value) == (0.5, 0.5)
    payload = build(report(t, measured=False))
    assert payload["waste"]["tables"][0]["arms"][0]["levels"]["likely"] == 1


def test_savings_by_hand() -> None:
    """One dropped call of 3 + 5 tokens, read by two later requests, the first of them for the first time."""
    prices = Prices(input_per_million=1000.0, cached_input_per_million=100.0, output_per_million=10_000.0)
    payload = build(report(searcher([2.0, 1.0, 1.5, 0.5]), costs=Costs(prices=prices)))
    table = payload["waste"]["tables"][0]
    assert list(table["by_level"]) == ["certified"]
    (level,) = table["by_level"]["certified"]
    assert table["saves"]
    assert (level["calls"], level["call_tokens"], level["prompt_tokens"], level["seconds"]) == (1, 3, 16, 0.5)
    assert level["money"] == pytest.approx((3 * 10_000 + 16 * 1000) * 1e-6)
    assert level["money_with_cache"] == pytest.approx((3 * 10_000 + 8 * 1000 + 8 * 100) * 1e-6)
    assert level["texts"]["money"] == "0.0460"
    tile = next(f for f in payload["headline"]["figures"] if f["key"] == "savings")
    assert tile["rows"][0]["text"] == "19"
    assert tile["rows"][0]["detail"] == "1 certified call dropped, 0.0460 USD, 0.5 s of tools"


def test_unknown_prices_are_null_and_no_waste_means_no_savings() -> None:
    wasteful = build(report(searcher([2.0, 1.0, 1.5])))
    level = wasteful["waste"]["tables"][0]["by_level"]["certified"][0]
    assert level["money"] is None
    assert level["texts"]["money"] == "–"
    clean = build(report(searcher([2.0, 1.0])))
    assert not clean["waste"]["tables"][0]["saves"]
    assert [f["key"] for f in clean["headline"]["figures"]] == ["calls", "reduction_rate", "correct_per_call", "waste"]


def test_the_headline_says_what_the_table_says() -> None:
    data = report(*(searcher([2.0, 1.0, 1.5, 0.5], f"t{i}", outcome=float(i % 2)) for i in range(10)))
    payload = build(data)
    figures = {f["key"]: f["rows"][0] for f in payload["headline"]["figures"]}
    row = payload["overview"][0]["rows"][0]
    shown = dict(zip((c["key"] for c in payload["overview"][0]["columns"]), row["cells"], strict=True))
    for key in ("reduction_rate", "correct_per_call", "waste"):
        assert figures[key]["text"] == shown[key]["text"]
    assert figures["calls"]["text"] == "30"
    assert figures["waste"]["detail"] == "10 certified, 0 likely"


def test_nothing_called_has_no_headline_and_no_waste() -> None:
    payload = build(report(searcher([1.0])))
    assert payload["headline"] is None
    assert payload["waste"]["tables"] == []


def test_the_most_wasteful_are_those_certified_first() -> None:
    """Four calls that did not reduce weigh less than one that is certified waste."""
    kept = report(
        *(searcher([2.0, 1.0], f"clean{i}") for i in range(3)), searcher([2.0, 1.0, 1.5], "waste")
    ).columns[0].evaluations["logs"]  # fmt: skip
    assert kept.candidates[Reason.WASTEFUL][0].record["id"] == "waste"
    assert kept.rows("SELECT count(*) FROM calls WHERE waste_level = 'certified'") == [(1,)]


def test_the_page_names_every_class_in_plain_words(tmp_path: Path) -> None:
    write_report(report(searcher([2.0, 1.0, 1.5, 0.5])), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    meanings = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["waste"]["meanings"]
    assert meanings["classes"]["exact_duplicate"] in html
    assert "What dropping them would have saved" in html
    assert "The rest of each trajectory would have been the same" in html

"""A reduction rate over calls of which none could be told is no rate of 0: tables show a dash, JSON the number."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import make_trajectory
from typer.testing import CliRunner

from deltah import CallTable, Trajectory
from deltah.calls.table import score_measured
from deltah.cli.app import app
from deltah.report.data import ArmData, Evaluation, ReportData
from deltah.report.page import build, render
from deltah.stats.summary import calls_by, compare, rate_cell, summarise, table
from deltah.text_format import MISSING
from deltah.traces import write_traces

UNTOLD = {"undecided": {"half_width": 5.0}, "undefined": {"unanswered_last": True}}


def trajectories(kind: str, n: int = 6) -> list[Trajectory]:
    """One call each, with a ΔH of -1 or of +1: reduced, not reduced, or neither can be said."""
    first = 0.5 if kind == "not reduced" else 2.0
    return [
        make_trajectory([[first], [1.0]], id=str(i), question=str(i), outcome=1.0, **UNTOLD.get(kind, {}))
        for i in range(n)
    ]


def evaluation(listed: list[Trajectory]) -> Evaluation:
    return Evaluation.of((t, score_measured(t)) for t in listed)


@pytest.mark.parametrize(
    ("kind", "text"), [("undecided", "–"), ("undefined", "–"), ("not reduced", "0.00"), ("reduced", "1.00")]
)
def test_a_group_of_calls(kind: str, text: str) -> None:
    listed = trajectories(kind)
    (summary,) = calls_by(CallTable.of(listed), "tool").values()
    assert rate_cell(summary).text == text
    assert (rate_cell(summary).interval == "") is (text == MISSING)
    assert summary.reduction_rate.value == (1.0 if kind == "reduced" else 0.0), "the number stays"
    ((cell,),) = table({"a": summarise(listed)}, columns=("reduction_rate",))[1].values()
    assert cell.text == text


def test_a_difference_from_what_cannot_be_told() -> None:
    told, untold = trajectories("reduced"), trajectories("undecided")
    cells = {
        name: table({"b": compare(told, b)}, columns=("reduction_rate",), signed=True)[1]["b"][0].text
        for name, b in (("told", told), ("untold", untold))
    }
    assert cells == {"told": "0.00", "untold": MISSING}
    assert compare(told, untold).reduction_rate.value == -1.0


def test_some_that_could_be_told_make_a_rate() -> None:
    mixed = summarise([*trajectories("undecided"), *(t for t in trajectories("not reduced"))])
    assert table({"a": mixed}, columns=("reduction_rate",))[1]["a"][0].text == "0.00"


def test_the_terminal_and_the_page(tmp_path: Path) -> None:
    write_traces(tmp_path / "t.jsonl", trajectories("undecided"))
    result = CliRunner().invoke(app, ["score", str(tmp_path / "t.jsonl")], env={"COLUMNS": "100"})
    assert [line.split()[:3] for line in result.output.splitlines() if line.split()[:1] == ["search"]] == [
        ["search", "6", MISSING]
    ]
    data = {kind: evaluation(trajectories(kind)) for kind in ("undecided", "not reduced")}
    payload = build(
        ReportData(title="t", arms=tuple(ArmData(name=k, evaluations={"logs": e}) for k, e in data.items()))
    )
    (by_tool,) = (calls["by_tool"] for calls in payload["calls"])
    assert [(row["reduction_rate"]["text"], row["reduction_rate"]["value"]) for row in by_tool] == [
        ("–", 0),
        ("0.00", 0),
    ]
    tile = next(figure for figure in payload["headline"]["figures"] if figure["key"] == "reduction_rate")
    assert [row["text"] for row in tile["rows"]] == ["–", "0.00"]
    assert tile["rows"][0]["detail"] == "6 undecided"
    told_alone = {**payload, "calls": [{**payload["calls"][0], "by_tool": by_tool[1:], "by_round": []}]}
    untold_alone = {**payload, "calls": [{**payload["calls"][0], "by_tool": by_tool[:1], "by_round": []}]}
    bars = [render(each).count('class="spark"') for each in (told_alone, untold_alone)]
    assert bars[0] - bars[1] == 1, "no bar at 0 either"

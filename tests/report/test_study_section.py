"""The study's section of the page: rendered alone, linked to the viewer, inert whatever the names hold."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from stats.study_tables import study_table

from deltah.report import charts
from deltah.report.page import environment
from deltah.report.sections import study_section
from deltah.report.viewer import inert_tree
from deltah.runs import nan_to_none
from deltah.stats.bootstrap import Estimate
from deltah.stats.study import StudyResult, run_study
from deltah.stats.study_text import finding


@pytest.fixture(scope="module")
def result() -> StudyResult:
    return run_study(study_table(60), resamples=100, permutations=100)


def render(section: dict[str, object]) -> str:
    return environment().get_template("study.html.j2").render(study=inert_tree(nan_to_none(section)), charts=charts)


class Page(HTMLParser):
    """Open elements, all elements, links."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name == "href"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_partial_renders_alone(result: StudyResult) -> None:
    failure = result.failures[0]
    section = study_section(result, {failure.trajectory: "my arm/logs/a b&c+d"})
    html = render(section)
    page = Page(html)
    assert page.open == []
    assert page.tags.count("svg") == len(section["histograms"]) + len(section["rocs"]) + len(section["positions"])
    assert f"#t=my%20arm%2Flogs%2Fa%20b%26c%2Bd&at=r{failure.index}" in page.links
    assert len(page.links) == sum(f.trajectory == failure.trajectory for f in result.failures)
    assert "ROC curves" in html
    assert "Holm" in html
    assert "5 are needed" in html


def test_charts_say_what_the_study_says(result: StudyResult) -> None:
    section = nan_to_none(study_section(result, {}))
    (histogram,) = section["histograms"]
    drawing = str(charts.quality_histogram(histogram, charts.quality_peak([histogram])))
    assert drawing.count("<rect") == 2 * (len(histogram["edges"]) - 1)
    assert f"good, n = {sum(histogram['good'])}" in drawing
    roc = next(panel for panel in section["rocs"] if panel["label"] == "correct")
    drawing = str(charts.roc(roc))
    assert drawing.count("<path") == 3
    auc = next(a for a in result.of_label("correct") if a.signal == "delta_h").auc
    assert f"{auc.value:.2f} [{auc.low:.2f}, {auc.high:.2f}]" in drawing
    reduction, rates = section["positions"]
    assert [s["name"] for s in rates["series"]] == ["correct"]
    assert str(charts.by_index(reduction)).count("mark a1") == 1 + sum(
        e["value"] is not None for e in reduction["series"][0]["values"]
    )


def test_the_finding_names_position_beside_the_signal(result: StudyResult) -> None:
    text = finding(result.of_label("correct"))
    assert text is not None
    assert "within call index" in text
    assert "the call index alone has" in text
    for p, said in (
        (0.01, "more reduction goes with good calls (p = 0.0100 after Holm)"),
        (0.3, "no association is shown (p = 0.3000 after Holm)"),
        (float("nan"), "nothing is left of it to test"),
    ):
        assert said in str(finding([replace(a, p_partial_holm=p) for a in result.of_label("correct")]))
    assert finding(result.of_label("grade")) is None
    assert finding(result.of_label("thin")) is None


def test_no_finding_of_a_signal_that_the_label_is_made_of(result: StudyResult) -> None:
    rows = result.of_label("correct")
    clear = Estimate(value=0.99, low=0.98, high=1.0, n=rows[0].auc.n, left_out=0)
    best = replace(next(a for a in rows if a.signal == "entropy_before"), signal="gold_gain", auc=clear)
    reduction = next(a for a in rows if a.signal == "delta_h")
    assert "The greatest AUC is that of gold_gain" in str(finding([best, reduction]))
    useful = finding([replace(a, label="useful") for a in (best, reduction)])
    assert useful is not None
    assert "gold_gain" not in useful


def test_hostile_names_are_inert() -> None:
    table = study_table(30)
    name = "</section><script>alert(1)</script>\x1b[31m\u202e"
    calls = tuple((name + c[0], c[1]) for c in table.calls)
    labels = {"correct": table.labels["correct"], "<img src=x>": table.labels["correct"]}
    result = run_study(replace(table, calls=calls, labels=labels), resamples=100, permutations=100)
    links = {f.trajectory: f.trajectory for f in result.failures}
    html = render(study_section(result, links, title="<b>study"))
    page = Page(html)
    assert page.open == []
    assert not {"script", "img", "b"} & set(page.tags)
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert all(link.startswith("#t=") for link in page.links)


def test_a_study_without_any_number_still_renders() -> None:
    table = study_table(4)
    blank = replace(table, signals={"delta_h": np.full(len(table), np.nan)}, labels={"thin": table.labels["thin"]})
    section = study_section(run_study(blank, resamples=100, permutations=100), {})
    assert section["findings"] == section["histograms"] == section["rocs"] == []
    assert section["notes"] == [], "how p-values were made says nothing where there is none"
    assert Page(render(section)).open == []

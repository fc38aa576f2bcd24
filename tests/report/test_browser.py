"""The page in a real browser: opened, filtered, sorted, walked by keys, compared, printed; nothing hostile runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from chromium import CHROMIUM, Browser, browser
from scale import long_trajectories
from study_builders import demo, evaluated, rollouts
from test_page import HOSTILE, hostile_trajectory

from deltah import ToolCall, Trajectory, score
from deltah.report.data import ArmData, Evaluation, ReportData
from deltah.report.page import write_report
from deltah.stats.columns import build_table
from deltah.stats.study import run_study

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
]
CLIPPED = """[...document.querySelectorAll("main *, header *, footer *")].filter((node) => {
  const style = getComputedStyle(node);
  const cut = style.overflowX === "hidden" || style.overflowX === "clip";
  return cut && style.textOverflow !== "ellipsis" && node.clientWidth && node.scrollWidth > node.clientWidth + 1;
}).map((node) => node.className + ": " + node.textContent.slice(0, 40))"""
"""Elements that hide part of their text without saying so."""
TOO_WIDE = """[...document.querySelectorAll("main *")].filter((node) =>
  node.getBoundingClientRect().right > document.documentElement.clientWidth + 1 && !node.closest("svg")
).map((node) => node.tagName + "." + node.className)"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium") / "profile") as found:
        yield found


@pytest.fixture
def page(chromium: Browser) -> Iterator[Browser]:
    """The one browser, with a clean slate."""
    chromium.requests.clear()
    chromium.dialogs.clear()
    chromium.errors.clear()
    chromium.media()
    chromium.resize(1400, 900)
    yield chromium
    assert chromium.errors == []
    assert chromium.dialogs == []
    assert [url for url in chromium.requests if not url.startswith(("file:", "data:"))] == []


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One set of logs."""
    return written(tmp_path_factory.mktemp("one"), a=rollouts(0, 3.0, 0.6, 40))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of logs of the same questions."""
    return written(tmp_path_factory.mktemp("two"), first=rollouts(0, 3.0, 0.6, 20), second=rollouts(1, 2.0, 0.7, 20))


def written(folder: Path, **arms: list[Trajectory]) -> Path:
    data = tuple(ArmData(name=name, evaluations={"logs": evaluated(listed)}) for name, listed in arms.items())
    write_report(ReportData(title="page", arms=data), folder / "report.html")
    return folder / "report.html"


def records(page: Path) -> list[dict[str, Any]]:
    found = json.loads(page.with_suffix(".json").read_text())["viewer"]["trajectories"]
    assert isinstance(found, list)
    return found


def link(page: Path, record: dict[str, Any], more: str = "") -> str:
    return f"{page.as_uri()}#t={quote(record['key'], safe='')}{more}"


def opened(b: Browser) -> list[str]:
    """Keys of the trajectories on the screen."""
    return list(b.js('[...document.querySelectorAll("#v-main article")].map((node) => node.dataset.key)'))


def test_deep_link_opens_a_trajectory_beside_another(page: Browser, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(demo(12), out)
    record = next(r for r in records(out) if r["arm"] == 2 and r["calls"] > 0)
    other = next(r for r in records(out) if r["arm"] == 0 and r["question"] == record["question"])
    page.open(link(out, record, f"&vs={quote(other['key'], safe='')}"))
    assert opened(page) == [other["key"], record["key"]]
    rounds = sum(block["kind"] == "round" for r in (record, other) for block in r["blocks"])
    assert page.count("#v-main .cards") == rounds
    assert page.count("#v-main .tok.h5") > 0
    assert page.text("#v-count") == "96 of 96 trajectories"
    assert page.js("document.getElementById('viewer').getBoundingClientRect().top") < 100


def test_deep_link_to_a_round_shows_it(page: Browser, one: Path) -> None:
    record = next(r for r in records(one) if r["calls"] >= 4)
    page.open(link(one, record, "&at=r4"))
    box = page.js("(({top, bottom}) => [top, bottom])(document.querySelector('[data-at=r4]').getBoundingClientRect())")
    assert 0 <= box[0] < box[1] <= 900
    assert page.js("document.activeElement.dataset.at") == "r4"


def test_a_failure_case_of_the_study_opens_its_round(page: Browser, tmp_path: Path) -> None:
    trajectories = rollouts(0, 2.5, 0.6, 40)
    study = run_study(build_table(trajectories), resamples=100, permutations=100)
    out = tmp_path / "report.html"
    arm = ArmData(name="a", evaluations={"logs": evaluated(trajectories)}, study=study)
    write_report(ReportData(title="page", arms=(arm,)), out)
    page.open(out.as_uri())
    href = page.js("document.querySelector('#study a[href^=\"#t=\"]').getAttribute('href')")
    page.click('#study a[href^="#t="]')
    assert page.js("location.hash") == href
    assert page.js("document.activeElement.dataset.at") == href.partition("&at=")[2]
    assert len(opened(page)) == 1


def test_a_dead_link_opens_the_most_wasteful(page: Browser, one: Path) -> None:
    page.open(f"{one.as_uri()}#t=nothing")
    assert page.js("document.querySelector('.item').getAttribute('aria-selected')") == "true"
    assert len(opened(page)) == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0021, "2 ms"), (0.25, "250 ms"), (3.7, "3.7 s"), (119.0, "119.0 s"), (5400, "90 minutes")]
)
def test_the_time_of_a_call_is_told_in_a_fitting_unit(page: Browser, tmp_path: Path, seconds: float, text: str) -> None:
    timed = [replace(t, calls=tuple(replace(c, duration_s=seconds) for c in t.calls)) for t in rollouts(0, 3.0, 0.6, 2)]
    page.open(written(tmp_path, a=timed).as_uri())
    told = page.js("[...document.querySelectorAll('.callhead .unit')].map((node) => node.textContent)")
    assert told
    assert set(told) == {text}


def test_filter_and_search(page: Browser, one: Path) -> None:
    page.open(one.as_uri())
    everything = records(one)
    assert page.text("#v-count") == "40 of 40 trajectories"
    page.choose("#v-outcome", "incorrect")
    wrong = [r for r in everything if r["correct"] is False]
    assert page.text("#v-count") == f"{len(wrong)} of 40 trajectories"
    page.choose("#v-tool", "python")
    both = [r for r in wrong if any(c["name"] == "python" for b in r["blocks"] for c in b.get("calls", []))]
    assert 0 < len(both) < len(wrong)
    assert page.count(".item") == len(both)
    assert opened(page)[0] in {r["key"] for r in both}
    page.choose("#v-tool", "")
    page.choose("#v-outcome", "")
    page.choose("#v-show", "wrong")
    assert page.count(".item") == sum(r["correct"] is False and (r["change"] or 0) < 0 for r in everything)
    page.choose("#v-show", "")
    page.choose("#v-search", "VERSION 17")
    assert page.count(".item") == 1
    assert "version 17" in page.text("#v-main .question")
    page.choose("#v-search", "no such text")
    assert page.text("#v-main") == "No trajectory fits the filter."


def test_order(page: Browser, one: Path) -> None:
    page.open(one.as_uri())

    def first() -> dict[str, Any]:
        page.click(".item")
        return next(r for r in records(one) if r["key"] == opened(page)[0])

    def wasted(record: dict[str, Any]) -> tuple[int, int, int]:
        return record["waste"]["certified"], record["waste"]["likely"], record["not_reduced"]

    assert wasted(first()) == max(map(wasted, records(one)))
    page.choose("#v-sort", "calls")
    assert first()["calls"] == max(r["calls"] for r in records(one))
    page.choose("#v-sort", "wrong")
    assert first()["change"] == min(r["change"] for r in records(one) if r["correct"] is False and r["change"])
    page.choose("#v-sort", "question")
    assert first()["question"] == 0


def test_a_click_opens_a_trajectory_with_its_cards(page: Browser, one: Path) -> None:
    page.open(one.as_uri())
    page.click(".item", 3)
    record = next(r for r in records(one) if r["key"] == opened(page)[0])
    assert quote(record["key"], safe="") in page.js("location.hash")
    assert page.count("#v-main .callbox") == record["calls"]
    assert page.count("#v-main .timeline .at-round") == record["calls"]
    wasteful = [c for b in record["blocks"] for c in b.get("calls", []) if c.get("waste")]
    assert page.count("#v-main .chip") == sum(len(c["waste"]) for c in wasteful)
    page.click("#v-main .at-round", 1)
    assert page.js("location.hash").endswith("&at=r2")


def test_keys(page: Browser, one: Path) -> None:
    page.open(one.as_uri())
    order = page.js('[...document.querySelectorAll(".item .q:first-child bdi")].map((node) => node.textContent)')
    first = opened(page)
    page.key("j")
    second = opened(page)
    assert second != first
    page.key("k")
    assert opened(page) == first
    page.key("n")
    page.key("n")
    assert page.js("document.activeElement.dataset.at") == "r2"
    page.key("p")
    assert page.js("location.hash").endswith("&at=r1")
    page.key("/")
    assert page.js("document.activeElement.id") == "v-search"
    page.key("j")  # typed, not obeyed
    assert page.js("document.activeElement.value") == "j"
    page.choose("#v-search", "")
    page.key("Escape")
    page.key("ArrowDown")
    assert opened(page) == second
    assert page.js("document.querySelectorAll('.item')[1].getAttribute('aria-selected')") == "true"
    assert order[1] in page.text("#v-main .question")


def test_two_runs_stand_side_by_side(page: Browser, two: Path) -> None:
    page.open(two.as_uri())
    pair = [next(r for r in records(two) if r["key"] == key) for key in opened(page)]
    assert [r["arm"] for r in pair] == [0, 1]
    assert pair[0]["question"] == pair[1]["question"]
    left, right = page.js('[...document.querySelectorAll("article")].map((a) => a.getBoundingClientRect().left)')
    assert right > left + 300
    page.key("c")
    assert len(opened(page)) == 1
    page.key("j")
    assert len(opened(page)) == 1
    page.key("c")
    assert len(opened(page)) == 2
    assert page.count("#plane svg") == 1
    assert "minus first" in page.text("#overview")


def test_hostile_text_stays_text(page: Browser, tmp_path: Path) -> None:
    attacks = [text.replace("alert(1)", "alert(document.title='broken')") for text in HOSTILE]
    attacks += ["<script src='https://example.org/x.js'></script>", "<a href='javascript:alert(1)'>x</a>"]
    attacks.append("A" * 1_000_000)
    out = written(tmp_path, **{"<b>arm": [hostile_trajectory(text) for text in attacks]})
    page.open(out.as_uri())
    for record in records(out):
        page.js(f"location.hash = 't=' + {json.dumps(quote(record['key'], safe=''))}")
        page.settle()
        assert opened(page) == [record["key"]]
    assert page.js("document.title") == "page"
    assert page.count("img, b b, iframe, main script, a[href^=javascript]") == 0
    assert len(page.js("document.querySelector('#v-main').innerText")) > 0
    page.js("location.hash = 't=' + encodeURIComponent(JSON.parse(document.getElementById('deltah-data').textContent)"
            ".viewer.trajectories[1].key)")  # fmt: skip
    page.settle()
    assert "<img src=x onerror=" in page.text("#v-main .question")
    assert out.stat().st_size < 400_000


def test_a_letter_that_turns_the_line_turns_only_its_own(page: Browser, tmp_path: Path) -> None:
    """Real right-to-left text is shown as such and does not reorder the English around it."""
    call = ToolCall(id="c", name="חיפוש", arguments="שלום 123", turn=0, result="עולם")
    t = hostile_trajectory("plain")
    fields = {name: getattr(t, name) for name in t.__dataclass_fields__}
    out = written(tmp_path, a=[Trajectory(**fields | {"calls": (call,), "question": "שלום", "id": "אבג"})])
    page.open(out.as_uri())
    assert page.text("#v-main .callbox .name") == "חיפוש"
    assert page.js("getComputedStyle(document.querySelector('.callbox pre')).unicodeBidi") == "plaintext"
    assert page.count("#v-main .question bdi") == page.count("#v-main bdi.name") == 1


@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_is_clipped(page: Browser, two: Path, width: int) -> None:
    page.resize(width, 900)
    page.open(two.as_uri())
    page.js("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    assert page.js("document.documentElement.scrollWidth") <= width
    assert page.js(CLIPPED) == []


def test_dark_mode(page: Browser, one: Path) -> None:
    page.open(one.as_uri())
    light = page.js("getComputedStyle(document.body).backgroundColor")
    page.media(prefers_color_scheme="dark")
    page.open(one.as_uri())
    dark = page.js("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, light[4:-1].split(","))) > 700
    assert sum(map(int, dark[4:-1].split(","))) < 100


def test_print(page: Browser, two: Path, tmp_path: Path) -> None:
    page.open(two.as_uri())
    page.pdf(tmp_path / "page.pdf")
    document = (tmp_path / "page.pdf").read_bytes()
    assert document.startswith(b"%PDF")
    assert 3 <= document.count(b"/Type /Page\n") <= 12
    # An A4 page less its margins, at 96 dots an inch.
    page.resize(695, 1000)
    page.media(type="print")
    page.settle()
    assert page.js(TOO_WIDE) == []
    assert page.js("getComputedStyle(document.querySelector('aside')).display") == "none"


def test_200_long_trajectories_are_small_and_quick(page: Browser, tmp_path: Path) -> None:
    out = written(tmp_path, long=list(long_trajectories(200)))
    assert out.stat().st_size < 8_000_000
    assert len(records(out)) == 200
    seconds = []
    for _ in range(3):
        began = page.open(out.as_uri())
        first = opened(page)
        page.key("j")
        assert opened(page) != first
        seconds.append(began)
    assert min(seconds) < 2.0


@pytest.mark.parametrize(("signal", "title", "unit"), [("delta_h", "ΔH", " nats"), ("ratio", "ΔH ratio", "")])
def test_cards_name_the_signal_and_its_unit(page: Browser, tmp_path: Path, signal: str, title: str, unit: str) -> None:
    logs = Evaluation.of((t, score(t, name=signal)) for t in rollouts(0, 3.0, 0.6, 4))
    write_report(ReportData(title="t", arms=(ArmData(name="a", evaluations={"logs": logs}),)), tmp_path / "r.html")
    page.open((tmp_path / "r.html").as_uri())
    bars = page.js("[...document.querySelectorAll('svg.delta')].map(bar => bar.getAttribute('aria-label'))")
    assert bars
    number = r"[+\N{MINUS SIGN}]?[\d.]+"
    for label in bars:
        assert re.fullmatch(f"{title} {number}{unit}, on a scale of {number} to {number}{unit}", label), label
    assert re.fullmatch(f"{title} bars reach from {number} to {number}{unit}", page.text("#v-scale"))
    assert all(
        title in text for text in page.js("[...document.querySelectorAll('#v .label[title]')].map(e => e.title)")
    )

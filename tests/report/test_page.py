"""The report: structure, JSON twin, determinism, size, and logs that try to break out of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from study_builders import PLANS, demo, evaluated, rollouts

from deltah import Segment, SegmentKind, ToolCall, Trajectory
from deltah.errors import DataError, InvalidValueError
from deltah.report.charts import spread, tick_labels, ticks
from deltah.report.data import ArmData, ReportData, load_arm, load_report
from deltah.report.page import build, moving_mean, write_report
from deltah.report.viewer import compact_json, script_json
from deltah.runs import nan_to_none, open_run
from deltah.stats.columns import build_table
from deltah.stats.study import run_study
from deltah.text_format import inert
from deltah.traces import write_traces

VOID = {"meta", "link", "br", "input", "img", "hr"}
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!--<script>",
    "\x1b[31mred\x1b[0m\x07",
    "abc\u202edcba\u2066x\u2069",
    "lone \ud800 surrogate",
    "{{ 7 * 7 }} {% raw %}",
    "' onmouseover='alert(1)\" x=\"",
    "line\u2028separator\x00",
    "tag\U000e0041hidden",
)


class Page(HTMLParser):
    """Checks nesting while collecting tags, attributes, text and scripts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: dict[str, str] = {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts[self.tags[-1][1].get("id") or "code"] = data
        else:
            self.texts.append(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    write_report(demo(24), out)
    return out


def test_structure(written: Path) -> None:
    page = Page(written.read_text())
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(set(ids)) == len(ids)
    assert {"overview", "plane", "curves", "calls", "viewer", "notes", "deltah-data"} <= set(ids)
    assert sum(tag == "svg" and a.get("class") == "chart" for tag, a in page.tags) == 2 + 4 + 8
    text = "".join(page.texts)
    for name in ("start", "outcome", "sparse", "dense", "sampled", "greedy", "tools needed", "minus", "synthetic"):
        assert name in text


def test_self_contained(written: Path) -> None:
    page = Page(written.read_text())
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "img")
        for name in ("src", "href", "action"):
            value = attributes.get(name) or ""
            assert value == "" or value[0] == "#" or value == "data:,"
    html = written.read_text()
    assert "url(" not in html
    assert "@import" not in html
    assert "innerHTML" not in html
    assert "default-src 'none'" in html


def test_twin_holds_the_same_data(written: Path) -> None:
    twin = json.loads(written.with_suffix(".json").read_text())
    assert json.loads(Page(written.read_text()).scripts["deltah-data"]) == twin
    assert twin["schema_version"] == 2
    rows = next(o for o in twin["overview"] if (o["evaluation"], o["subset"]) == ("sampled", "all"))["rows"]
    outcomes = [t.outcome for t in rollouts(0, *PLANS["outcome"], 24)]
    assert rows[1]["all"]["outcome"]["value"] == pytest.approx(np.mean(outcomes))


def test_same_input_same_bytes(written: Path, tmp_path: Path) -> None:
    again = tmp_path / "other.html"
    write_report(demo(24), again)
    assert again.read_bytes() == written.read_bytes()
    assert again.with_suffix(".json").read_bytes() == written.with_suffix(".json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.html", "other.json"]


def hostile_trajectory(text: str) -> Trajectory:
    call = ToolCall(id="c", name=text, arguments=text, turn=0, result=text)
    return Trajectory(
        id=text,
        segments=(
            Segment(kind=SegmentKind.REASONING, start=0, stop=1, turn=0),
            Segment(kind=SegmentKind.RESULT, start=1, stop=2, turn=0),
            Segment(kind=SegmentKind.REASONING, start=2, stop=3, turn=1),
        ),
        calls=(call,),
        entropy=np.array([1.0, np.nan, 0.5]),
        token_texts=(text, text, text),
        question=text,
        prediction=text,
        golden_answers=(text,),
        outcome=1.0,
        metadata={"task_id": text},
    )


def test_hostile_logs_are_inert(tmp_path: Path) -> None:
    trajectories = evaluated([hostile_trajectory(text) for text in HOSTILE])
    arm = ArmData(
        name=HOSTILE[0],
        evaluations={HOSTILE[1]: trajectories},
        config={HOSTILE[0]: HOSTILE[7]},
        metrics=[{"step": 1, "deltah/outcome": 0.5}, {"step": 2, "deltah/outcome": 0.7}],
        problems=HOSTILE,
        n_problems=len(HOSTILE),
    )
    data = ReportData(title="".join(HOSTILE), arms=(arm,), facts={HOSTILE[0]: HOSTILE[1]})
    out = tmp_path / "report.html"
    write_report(data, out)
    html = out.read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    assert not any(tag == "img" or any(name.startswith("on") for name in a) for tag, a in page.tags)
    for character in "\x1b\x07\x00\u202e\u2066\u2028\U000e0041":
        assert character not in html
    assert "␛[31mred" in html
    assert "⟨U+202E⟩" in html
    assert "⟨U+D800⟩" in html
    assert "49" not in page.texts[0]
    assert json.loads(page.scripts["deltah-data"]) == json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))


def test_inert_leaves_ordinary_text_alone() -> None:
    assert inert("Grüße, 你好, שלום, 👩‍🔬\n\tok") == "Grüße, 你好, שלום, 👩‍🔬\n\tok"
    assert inert("\x7f\x85") == "␡⟨U+0085⟩"


def test_script_json_cannot_close_its_element() -> None:
    value = {"a": "</script><!-- & ]]>"}
    assert not set("<>&") & set(script_json(value))
    assert json.loads(script_json(value)) == value
    with pytest.raises(ValueError, match="JSON compliant"):
        compact_json(float("nan"))


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="at least one arm"):
        ReportData(title="t", arms=())
    with pytest.raises(InvalidValueError, match="two arms are named 'a'"):
        ReportData(title="t", arms=(ArmData(name="a"), ArmData(name="a")))
    with pytest.raises(InvalidValueError, match=r"ends in \.html"):
        write_report(demo(2), tmp_path / "report.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        write_report(demo(2), tmp_path / "file" / "report.html")


def test_an_arm_without_evaluations_still_shows_its_curves(tmp_path: Path) -> None:
    metrics = [{"step": i, "deltah/outcome": None if i == 1 else 0.1 * i, "deltah/calls": "?"} for i in range(5)]
    write_report(ReportData(title="t", arms=(ArmData(name="a", metrics=metrics),)), tmp_path / "r.html")
    assert len(json.loads((tmp_path / "r.json").read_text())["curves"]) == 1


def test_load_runs_and_traces(tmp_path: Path) -> None:
    data = demo(6)
    for arm in data.arms:
        run = open_run(tmp_path / arm.name, {"reward": arm.name, "seed": 3}, command="train")
        for row in [*arm.metrics, {"step": 60, "train_runtime": 12.5}]:
            run.append_metrics(row)
        for name in arm.evaluations:
            write_traces(run.evaluation(name), rollouts(0, 2.0, 0.7, 6))
        write_traces(run.evaluation("start-sampled"), rollouts(1, 2.0, 0.7, 6))
    arm = load_arm(tmp_path / "sparse")
    assert (arm.name, arm.seconds, sorted(arm.evaluations)) == ("sparse", 12.5, ["greedy", "sampled", "start-sampled"])
    report = load_report([tmp_path / a.name for a in data.arms], title="T")
    assert [a.name for a in report.columns] == ["start", "outcome", "sparse", "dense"]
    assert report.facts["training seed"] == "3"
    assert list(report.start) == ["sampled"]
    write_report(report, tmp_path / "report.html")

    logs = tmp_path / "logs.jsonl"
    write_traces(logs, rollouts(0, 2.0, 0.7, 6))
    with logs.open("a") as file:
        file.write("not json\n")
    loaded = load_arm(logs)
    assert (loaded.name, len(loaded.evaluations["logs"]), loaded.n_problems) == ("logs", 6, 1)
    both = load_report([logs, logs])
    assert [a.name for a in both.arms] == ["logs", f"logs ({tmp_path.name})"]
    write_report(both, tmp_path / "logs.html")
    header = (tmp_path / "logs.html").read_text().split("</header>")[0]
    assert header.count("<b>1 record could not be read</b>") == 2, "a reader must not have to find it in the footer"


def test_a_score_of_the_log_is_not_called_f1(tmp_path: Path) -> None:
    """F1 is what deltah graded from answers; a log's own score is an outcome, and without any there is no column."""
    scored, ungraded = tmp_path / "scored.jsonl", tmp_path / "ungraded.jsonl"
    write_traces(scored, rollouts(0, 2.0, 0.7, 6))
    write_traces(ungraded, [replace(t, outcome=None) for t in rollouts(0, 2.0, 0.7, 6)])
    bare = tmp_path / "bare.jsonl"
    write_traces(bare, [replace(t, outcome=None, golden_answers=()) for t in rollouts(0, 2.0, 0.7, 6)])
    titles, pages = {}, {}
    for log in (scored, ungraded, bare):
        write_report(load_report([log]), log.with_suffix(".html"))
        twin = json.loads(log.with_suffix(".json").read_text())
        titles[log.stem] = [column["title"] for column in twin["overview"][0]["columns"]]
        pages[log.stem] = "".join(Page(log.with_suffix(".html").read_text()).texts)
    assert titles["scored"][:2] == ["outcome", "accuracy"]
    assert "F1" not in pages["scored"]
    assert "the score, in [0,\N{NO-BREAK SPACE}1], that the log or the answers' file states" in pages["scored"]
    assert titles["ungraded"][:2] == ["F1", "accuracy"], "graded here, from its gold answers"
    assert titles["bare"] == ["calls / trajectory", "reduction rate", "mean ΔH", "waste"]
    assert "No trajectory has an outcome. With --answers" in pages["bare"]


def test_a_page_of_logs_speaks_of_logs_and_runs(tmp_path: Path, written: Path) -> None:
    """Arm, policy and controls are words of an experiment; on a user's page there are logs, or runs by their names."""
    logs = [tmp_path / f"{name}.jsonl" for name in ("outcome", "before", "after")]
    for seed, log in enumerate(logs):
        write_traces(log, rollouts(seed, 2.0, 0.7, 8))
    pages = {}
    for name, paths in (("one", logs[:1]), ("two", [logs[1], logs[0]])):
        out = tmp_path / f"{name}.html"
        write_report(load_report(paths), out)
        pages[name] = "".join(Page(re.sub("<style>.*?</style>", "", out.read_text(), flags=re.S)).texts)
        assert re.findall(r"\b(?:arms?|policy|training|controls)\b", pages[name]) == []
        assert re.findall(r"^\s*logs\s*$", pages[name], re.M) == [], "the name of the only evaluation says nothing"
    assert "minus before" in pages["two"], "a log named outcome is no plain GRPO"
    assert "Run minus reference" in pages["two"]
    experiment = "".join(Page(written.read_text()).texts)
    assert "Arm minus reference" in experiment
    assert "shuffled-sign controls" in experiment


def test_logs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    logs = [tmp_path / folder / "log.jsonl" for folder in ("monday", "tuesday", "tuesday")]
    for log in logs[:2]:
        log.parent.mkdir()
        write_traces(log, rollouts(0, 2.0, 0.7, 2))
    two, three = load_report(logs[:2]), load_report(logs)
    assert two.title == "Comparison of log and log (tuesday)"
    assert [arm.name for arm in three.arms] == ["log", "log (tuesday)", "log (tuesday) 2"]


def test_what_holds_of_both_runs_is_said_once(tmp_path: Path) -> None:
    def arm(name: str, *notes: str) -> ArmData:
        return ArmData(name=name, evaluations={"logs": evaluated(rollouts(0, 2.0, 0.7, 4))}, notes=notes)

    payload = build(ReportData(title="t", arms=(arm("a", "of both", "of a"), arm("b", "of both")), notes=("of all",)))
    assert payload["notes"] == ["of all", "of both"]
    assert [found["notes"] for found in payload["arms"]] == [["of a"], []]
    alone = build(ReportData(title="t", arms=(arm("a", "of a"),)))
    assert (alone["notes"], alone["arms"][0]["notes"]) == ([], ["of a"])


def test_loading_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no trace files"):
        load_arm(tmp_path)
    with pytest.raises(DataError, match="nothing to report on"):
        load_report([])
    (tmp_path / "empty.jsonl").write_text("{\n")
    with pytest.raises(DataError, match="no trajectory that can be read; the first problem"):
        load_arm(tmp_path / "empty.jsonl")


def test_moving_mean_skips_gaps() -> None:
    values = np.array([1.0, 2.0, np.nan, 4.0, np.nan])
    np.testing.assert_allclose(moving_mean(values, 3), [1.5, 1.5, 3.0, 4.0, 4.0])
    np.testing.assert_allclose(moving_mean(values, 1), values)


def test_ticks_are_round_and_cover() -> None:
    assert ticks(0.0, 1.0) == [0, 0.25, 0.5, 0.75, 1.0]
    assert tick_labels([-0.5, 0.0, 0.5]) == ["−0.5", "0.0", "0.5"]
    for low, high in [(0.31, 0.87), (-3, 12), (5, 5), (1e-6, 2e-6)]:
        found = ticks(low, high)
        assert found[0] <= low + 1e-12
        assert found[-1] >= high - 1e-12
        assert len(set(tick_labels(found))) == len(found)


def test_labels_spread() -> None:
    placed = spread([10, 11, 50], 15, 0, 100)
    assert placed[1] - placed[0] >= 15
    assert placed[2] == 50
    assert spread([99, 100], 15, 0, 100) == [85, 100]


def test_a_folder_stands_for_its_runs(tmp_path: Path) -> None:
    data = demo(5)
    start = open_run(tmp_path / "start", {"seed": 0}, command="eval")
    write_traces(start.evaluation("sampled"), rollouts(9, 2.0, 0.7, 5))
    for arm in data.arms:
        run = open_run(tmp_path / arm.name, {"reward": arm.name}, command="train")
        write_traces(run.evaluation("sampled"), rollouts(0, 2.0, 0.7, 5))
    report = load_report([tmp_path])
    assert [arm.name for arm in report.columns] == ["start", "dense", "outcome", "sparse"]
    assert build(report)["arms"][0]["start"]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"holds no trace files"):
        load_report([tmp_path / "nothing"])


def test_a_collapse_is_announced(tmp_path: Path) -> None:
    rows = [
        {"step": i, "deltah/calls": 3.0 if i < 10 else 0.1, "deltah/outcome": 0.8 if i < 10 else 0.4} for i in range(20)
    ]
    arm = ArmData(name="sparse", metrics=[*rows, {"step": 20, "deltah/calls": None, "train_runtime": 1.0}])
    write_report(ReportData(title="t", arms=(arm,)), tmp_path / "r.html")
    text = "".join(Page((tmp_path / "r.html").read_text()).texts)
    assert "Training alarm" in text
    assert "dropping its tools" in text
    assert build(demo(3))["arms"][1]["alarms"] == []


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    t = hostile_trajectory("plain")
    fields = {name: getattr(t, name) for name in t.__dataclass_fields__}
    call = replace(t.calls[0], duration_s=float("nan"))
    odd = Trajectory(**fields | {"calls": (call,), "temperature": float("inf")})
    payload = build(
        ReportData(title="t", arms=(ArmData(name="a", evaluations={"logs": evaluated([odd])}, seconds=float("nan")),))
    )
    assert payload["viewer"]["trajectories"][0]["temperature"] is None
    assert payload["arms"][0]["seconds"] is None
    compact_json(payload)


def test_a_study_beside_the_traces_is_shown_and_must_be_one(tmp_path: Path) -> None:
    trajectories = rollouts(0, 2.5, 0.6, 40)
    write_traces(tmp_path / "a.jsonl", trajectories)
    assert build(load_report([tmp_path / "a.jsonl"]))["study"] == []
    result = run_study(build_table(trajectories), resamples=100, permutations=100)
    (tmp_path / "study.json").write_text(json.dumps(nan_to_none(result.as_dict())), encoding="utf-8")
    payload = build(load_report([tmp_path / "a.jsonl"]))
    keys = {r["key"] for r in payload["viewer"]["trajectories"]}
    links = [row["link"] for kind in payload["study"][0]["failures"] for row in kind["rows"]]
    assert links
    assert {unquote(link.removeprefix("#t=").partition("&")[0]) for link in links} <= keys
    for damaged in ("{", "[1]", "{}"):
        (tmp_path / "study.json").write_text(damaged)
        with pytest.raises(DataError, match=r"study\.json"):
            load_report([tmp_path / "a.jsonl"])


def test_calls_without_a_name_are_said_to_be_unparsed(tmp_path: Path) -> None:
    t = hostile_trajectory("plain")
    blank = replace(t, calls=tuple(replace(call, name=" ") for call in t.calls))
    data = ReportData(title="t", arms=(ArmData(name="a", evaluations={"logs": evaluated([blank])}),))
    payload = build(data)
    assert [row["name"] for row in payload["calls"][0]["by_tool"]] == ["(not parsed)"]
    rounds = [b for b in payload["viewer"]["trajectories"][0]["blocks"] if b["kind"] == "round"]
    assert {call["name"] for block in rounds for call in block["calls"]} == {"(not parsed)"}
    write_report(data, tmp_path / "report.html")
    assert "(not parsed)" in Page((tmp_path / "report.html").read_text()).texts

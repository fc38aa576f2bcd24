"""The viewer's part of the payload: which trajectories it holds, that they decode to what was read, its size."""

from __future__ import annotations

import json
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import make_trajectory
from hypothesis import given, settings
from hypothesis import strategies as st
from scale import long_trajectories
from study_builders import PLANS, agent, demo, evaluated, rollouts
from test_page import hostile_trajectory

from deltah import Segment, SegmentKind, ToolCall, Trajectory, score
from deltah.calls.table import CallTable
from deltah.calls.waste import facts_of_calls
from deltah.report.data import ArmData, ReportData, choose, load_report
from deltah.report.page import build, write_report
from deltah.report.viewer import Collector, Reason, compact_json, pack
from deltah.traces import write_traces


def one_arm(*trajectories: Trajectory, seed: int = 0) -> ReportData:
    return ReportData(title="t", arms=(ArmData(name="a", evaluations={"logs": evaluated(trajectories, seed)}),))


def test_long_arguments_and_results_are_cut_with_a_note() -> None:
    t = hostile_trajectory("plain")
    call = replace(t.calls[0], arguments="x" * 1_000_000, result="y" * 1_000_000)
    long = Trajectory(**{name: getattr(t, name) for name in t.__dataclass_fields__} | {"calls": (call,)})
    payload = build(one_arm(long))
    card = next(b for b in payload["viewer"]["trajectories"][0]["blocks"] if b["kind"] == "round")["calls"][0]
    assert len(card["arguments"]) + card["arguments_cut"] == 1_000_000
    assert len(card["result"]) + card["result_cut"] == 1_000_000
    assert len(compact_json(payload)) < 40_000


def test_size_of_200_long_trajectories(tmp_path: Path) -> None:
    """The worst case: every token was sampled, and words are drawn evenly from a large vocabulary."""
    rng = np.random.default_rng(0)
    words = [f"<w{i}>" for i in range(30_000)]
    trajectories = []
    for i in range(200):
        texts = tuple(words[j] for j in rng.integers(0, len(words), 2000))
        segment = Segment(kind=SegmentKind.REASONING, start=0, stop=2000, turn=0)
        h = rng.gamma(0.5, 1.0, 2000)
        trajectories.append(Trajectory(id=f"t{i}", segments=(segment,), entropy=h, token_texts=texts, outcome=1.0))
    out = tmp_path / "report.html"
    write_report(one_arm(*trajectories), out)
    assert out.stat().st_size < 8_000_000
    assert len(json.loads(out.with_suffix(".json").read_text())["viewer"]["trajectories"]) == 200


def test_many_trajectories_are_sampled_and_the_page_says_so() -> None:
    rng = np.random.default_rng(0)
    data = one_arm(*(agent(rng, q, calls=2, skill=0.5) for q in range(500)))
    picks, note = choose(data)
    assert len({p.candidate.order for p in picks}) == len(picks) == 200
    assert note.startswith("200 of 500 trajectories: 160 drawn with seed 0; the 16 most wasteful; 24 failure cases")
    assert "Statistics cover all 500" in note
    assert picks == choose(data)[0]
    payload = build(data)
    assert payload["overview"][0]["rows"][0]["all"]["outcome"]["n"] == 500
    assert payload["curves"] == payload["differences"] == []
    assert Counter(r["reason"] for r in payload["viewer"]["trajectories"])["drawn"] == 160


def test_the_most_wasteful_and_the_failure_cases_are_kept_from_anywhere_in_the_stream() -> None:
    ordinary = [make_trajectory([[1.0], [0.9]], id=f"t{i}", outcome=1.0) for i in range(400)]
    wasteful = make_trajectory([[1.0], [1.1], [1.2], [1.3]], id="wasteful", outcome=0.0)
    wrong = make_trajectory([[3.0], [0.1]], id="wrong", outcome=0.0)
    right = make_trajectory([[0.1], [3.0]], id="right", outcome=1.0)
    for at in (0, 200, 400):
        listed = [*ordinary[:at], wasteful, wrong, right, *ordinary[at:]]
        found = {p.candidate.record["id"]: p.reason for p in choose(one_arm(*listed))[0]}
        assert found["wasteful"] is Reason.WASTEFUL
        assert found["wrong"] is Reason.CERTAIN_AND_WRONG
        assert found["right"] is Reason.RISE_AND_RIGHT


def test_runs_draw_the_same_questions() -> None:
    """Also where a question comes several times, and the runs hold them in another order."""
    first = [replace_id(t, f"{t.id}.{i}") for i in range(2) for t in rollouts(0, 2.0, 0.5, 300)]
    second = [replace_id(t, f"{t.id}.0") for t in reversed(rollouts(1, 2.0, 0.5, 300))]
    drawn = [
        {c.cluster for c in evaluated(listed, 3).candidates[Reason.DRAWN] if c.repeat == 0}
        for listed in (first, second)
    ]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 200
    assert drawn[0] != {c.cluster for c in evaluated(first, 4).candidates[Reason.DRAWN]}


def replace_id(t: Trajectory, name: str) -> Trajectory:
    return Trajectory(**{field: getattr(t, field) for field in t.__dataclass_fields__} | {"id": name})


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), max_size=60))
def test_a_collector_keeps_what_sorting_would(made: list[tuple[int, int]]) -> None:
    """`made`: the question of each trajectory, and its rounds without reduction."""
    trajectories = [
        make_trajectory([[1.0 + k] for k in range(rounds + 1)], id=str(i), metadata={"task_id": str(question)})
        for i, (question, rounds) in enumerate(made)
    ]
    collector, table = Collector(0), CallTable.of(trajectories, tools={"search": "read"})
    for t in trajectories:
        collector.offer(t, score(t), facts_of_calls(t))
    kept = collector.candidates(table)
    assert {c.order for c in kept[Reason.DRAWN]} == set(range(len(made)))  # all, for fewer than 200
    expected = sorted((i for i, (_, rounds) in enumerate(made) if rounds > 1), key=lambda i: (-made[i][1], i))
    assert [c.order for c in kept[Reason.WASTEFUL]] == expected[:40]


def test_viewer_pairs_questions_across_arms() -> None:
    payload = build(demo(40))
    records = payload["viewer"]["trajectories"]
    assert len(records) == 200
    families = [[(r["arm"], r["evaluation"]) for r in records if r["question"] == q] for q in range(len(records))]
    assert all(len(family) == len(set(family)) for family in families)
    assert sum(len(family) == 8 for family in families) >= 20  # four arms, two evaluations
    assert "among them 21 questions that every arm answered" in payload["viewer"]["note"]
    assert len({r["key"] for r in records}) == 200


def test_arms_that_share_little_still_fill_the_viewer() -> None:
    rng = np.random.default_rng(0)
    first = evaluated([agent(rng, q, calls=2, skill=0.5) for q in range(150)])
    second = evaluated([agent(rng, q, calls=2, skill=0.5) for q in range(149, 300)])
    arms = (ArmData(name="a", evaluations={"logs": first}), ArmData(name="b", evaluations={"logs": second}))
    picks, note = choose(ReportData(title="t", arms=arms))
    assert len(picks) == len({(p.arm, p.candidate.order) for p in picks}) == 200
    assert "among them 1 question that every run answered" in note
    assert "Statistics cover all 301" in note


def test_a_small_limit_keeps_the_notable_ones() -> None:
    data = one_arm(*rollouts(0, 2.0, 0.5, 250))
    picks, note = choose(data)
    names = [arm.name for arm in data.columns]
    packed = pack(picks, note, arms=names, evaluations=data.evaluation_names, max_bytes=200_000)
    assert 40 < len(packed["trajectories"]) < 150
    assert {r["reason"] for r in packed["trajectories"]} >= {"wasteful", "certain_and_wrong", "rise_and_right"}
    assert f"Only {len(packed['trajectories'])} of them are kept" in packed["note"]
    assert len(packed["vocabulary"]) == len({i for r in packed["trajectories"] for i in tokens_of(r)})


def tokens_of(record: dict[str, list[dict[str, list[int]]]]) -> list[int]:
    return [i for block in record["blocks"] for i in block.get("tokens", [])]


def test_viewer_tokens_decode_to_the_trajectory() -> None:
    viewer = build(demo(4))["viewer"]
    record = next(r for r in viewer["trajectories"] if r["arm"] == 1 and r["calls"] and r["evaluation"] == "sampled")
    t = next(t for t in rollouts(0, *PLANS["outcome"], 4) if t.id == record["id"])
    kept = t.mask(kind for kind in SegmentKind if kind is not SegmentKind.RESULT)
    assert t.token_texts is not None
    assert [viewer["vocabulary"][i] for i in tokens_of(record)] == [
        text for text, keep in zip(t.token_texts, kept, strict=True) if keep
    ]
    h = np.array([v for b in record["blocks"] if "h" in b for v in b["h"]]) / 100
    assert t.entropy is not None
    np.testing.assert_allclose(h, t.entropy[t.response_mask], atol=0.0051)
    kinds = [b["kind"] for b in record["blocks"]]
    assert kinds[:4] == ["prompt", "reasoning", "call", "round"]
    means = score(t).segment_entropy
    assert [s["h"] for s in record["segments"]] == pytest.approx(means.tolist(), abs=1e-4)
    assert record["change"] == pytest.approx(means[-1] - means[0], abs=1e-4)


def test_tokenless_and_unmeasured_records_are_shown() -> None:
    call = ToolCall(id="c", name="f", arguments="{}", turn=0, result="r")
    segments = (
        Segment(kind=SegmentKind.PROMPT, start=0, stop=0, turn=0, text="hello"),
        Segment(kind=SegmentKind.REASONING, start=0, stop=0, turn=0, text="thinking"),
        Segment(kind=SegmentKind.REASONING, start=0, stop=0, turn=1, text="done"),
    )
    payload = build(one_arm(Trajectory(id="x", segments=segments, calls=(call,))))
    record = payload["viewer"]["trajectories"][0]
    assert [b["kind"] for b in record["blocks"]] == ["prompt", "reasoning", "round", "reasoning"]
    assert [b.get("text") for b in record["blocks"]] == ["hello", "thinking", None, "done"]
    assert (record["change"], record["not_reduced"]) == (None, None)
    assert payload["plane"] == []


def test_one_trajectory_is_held_at_a_time() -> None:
    alive: list[weakref.ref[Trajectory]] = []

    def stream() -> Iterator[Trajectory]:
        for t in long_trajectories(30, tokens=1500):
            assert sum(known() is not None for known in alive) <= 1  # the one whose loop has just ended
            alive.append(weakref.ref(t))
            yield t

    assert len(evaluated(stream())) == 30
    assert all(known() is None for known in alive)


@pytest.mark.slow
def test_a_page_of_10_000_trajectories(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_traces(tmp_path / "logs.jsonl.zst", (agent(rng, q, calls=2, skill=0.5) for q in range(10_000)))
    write_report(load_report([tmp_path / "logs.jsonl.zst"]), tmp_path / "report.html")
    payload = json.loads((tmp_path / "report.json").read_text())
    assert (tmp_path / "report.html").stat().st_size < 3_000_000
    summary = payload["overview"][0]["rows"][0]["all"]
    assert summary["outcome"]["n"] == 10_000
    assert sum(group["n"] for group in payload["calls"][0]["by_tool"]) == summary["reduction_rate"]["n"]
    assert len(payload["viewer"]["trajectories"]) == 200

"""From trajectories to columns: orientation of every signal, every label, and what is said of what is missing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import make_trajectory
from stats.study_tables import make_table

from deltah import Trajectory, score
from deltah.calls.table import CallTable
from deltah.core.segments import SegmentEntropies
from deltah.core.signals import SIGNALS, PositionBaseline
from deltah.core.types import FloatArray
from deltah.errors import InvalidValueError
from deltah.stats.columns import PROBE_COLUMNS, build_table, signal_note
from deltah.stats.labels import LABELS, Evidence, words
from deltah.tasks import Task
from deltah.tools import Document

NAN = float("nan")


def rollout(i: int, segments: list[list[float]], *, task: int | None = None, **fields: Any) -> Trajectory:
    metadata = {"task_id": f"q{i if task is None else task}"}
    return make_trajectory(segments, id=f"t{i}", **{"outcome": 1.0, "metadata": metadata, **fields})


def with_calls(trajectory: Trajectory, *changes: dict[str, Any]) -> Trajectory:
    calls = tuple(replace(call, **change) for call, change in zip(trajectory.calls, changes, strict=True))
    return replace(trajectory, calls=calls)


def test_signals_by_hand(trajectory: Trajectory) -> None:
    """H = 2, 1, 1.5, 0.5: reduction 1, -0.5, 1."""
    table = build_table([trajectory, rollout(1, [[1.0], [0.97]], outcome=0.5)])
    assert table.calls[0] == ("t", "0.0")
    assert (len(table), table.n_clusters, table.tools) == (4, 2, ("search",))
    assert table.index.tolist() == [1, 2, 3, 1]
    assert table.tokens.tolist() == [[2, 1], [1, 2], [2, 1], [1, 1]]
    np.testing.assert_allclose(table.signals["delta_h"], [1, -0.5, 1, 0.03])
    np.testing.assert_allclose(table.signals["ratio"], [0.5, -0.5, 1 / 1.5, 0.03], atol=1e-6)
    np.testing.assert_allclose(table.signals["entropy_before"], [2, 1, 1.5, 1])
    np.testing.assert_allclose(table.signals["cumulative"], [1, 0.5, 1.5, 0.03])
    np.testing.assert_allclose(table.signals["tail"], [1, -0.5, 1, 0.03])
    np.testing.assert_allclose(table.signals["reduced"], [1, 0, 1, 1])
    np.testing.assert_allclose(table.signals["reduced_0.05"], [1, 0, 1, 0])
    np.testing.assert_allclose(table.with_baseline()["call_index"], [-1, -2, -3, -1])
    np.testing.assert_allclose(table.labels["correct"], [NAN, NAN, NAN, 0.0])
    np.testing.assert_allclose(table.labels["executed"], [1, 1, 1, 1])


def test_every_signal_is_there_and_explained(trajectory: Trajectory) -> None:
    table = build_table([trajectory])
    assert set(SIGNALS) <= set(table.signals)
    assert signal_note("ratio").startswith("−1 × ΔH ratio: the entropy of the reasoning after a call less that")
    assert signal_note("reduced_0.05") == "I_k with a dead band of 0.05 nats"
    own = {"call_index", "placebo_controlled", "gold_gain"}
    assert all(signal_note(name) != signal_note("mine") for name in {*table.signals, *own})


def test_what_is_not_known_is_nan() -> None:
    undecided = rollout(1, [[1.0], [0.9]], half_width=0.2)
    unanswered = rollout(2, [[2.0], [1.0]], unanswered_last=True, outcome=None)
    bare = replace(rollout(3, [[2.0], [1.0]]), entropy=None, estimator="none")
    table = build_table([undecided, unanswered, bare, rollout(4, [[1.0]])])
    np.testing.assert_allclose(table.signals["reduced"], [NAN, NAN, NAN])
    np.testing.assert_allclose(table.signals["delta_h"], [0.1, NAN, NAN])
    np.testing.assert_allclose(table.labels["correct"], [1, NAN, 1])
    np.testing.assert_allclose(table.labels["executed"], [1, 0, 1])
    assert table.tokens[2].tolist() == [0, 0]


def test_position_correction_is_fitted_on_other_questions() -> None:
    """Changing the entropies of one question changes no expectation that is subtracted from it."""
    rng = np.random.default_rng(0)
    trajectories = [rollout(i, [[float(h)] for h in rng.uniform(0.5, 2.0, 4)]) for i in range(12)]
    table = build_table(trajectories, seed=3)
    expected = table.signals["delta_h"] - table.signals["position_corrected"]
    changed = [rollout(0, [[0.1], [5.0], [0.1], [9.0]]), *trajectories[1:]]
    other = build_table(changed, seed=3)
    moved = other.signals["delta_h"] - other.signals["position_corrected"]
    own = table.cluster == 0
    np.testing.assert_allclose(moved[own], expected[own])
    assert np.abs(moved[~own] - expected[~own]).max() > 0.1
    halves = np.unique(np.round(expected[table.index == 1], 9))
    assert len(halves) == 2
    first = np.random.default_rng(3).permutation(12) % 2 == 0
    fitted = PositionBaseline.fit([score(t) for t, side in zip(trajectories, first, strict=True) if not side])
    np.testing.assert_allclose(-fitted.expected(np.ones(1))[0], expected[(table.index == 1) & first[table.cluster]][0])


def evidence() -> Evidence:
    tasks = [
        Task(id="q1", question="Where?", golden_answers=("x",), supporting=("a", "b", "lost")),
        Task(id="q2", question="Who?", golden_answers=("y",), supporting=("b",)),
        Task(id="q3", question="What?", golden_answers=("z",)),
    ]
    documents = [
        Document(id="a", contents='"Mira"\nMira lives in Tarsa.'),
        Document(id="b", contents="Tarsa is a city"),
    ]
    return Evidence.of(tasks, documents)


def test_gold_evidence_and_new_evidence() -> None:
    first = with_calls(
        rollout(1, [[1.0]] * 5),
        {"result": "Doc 1(Title: Mira) Mira lives in Tarsa. Doc 2 ..."},
        {"result": "MIRA: mira lives in  Tarsa; and\nTarsa is a city."},
        {"result": "tarsa is a city"},
        {"name": "python", "result": "7"},
    )
    by_question = with_calls(
        rollout(9, [[1.0], [1.0]], question="Who? ", metadata={}), {"result": "Starsa is a city, Tarsa is a citymap"}
    )
    unknown = rollout(3, [[1.0], [1.0]])
    table = build_table([first, by_question, unknown], evidence=evidence())
    np.testing.assert_allclose(table.labels["gold_evidence"], [1, 1, 1, NAN, 0, NAN])
    np.testing.assert_allclose(table.labels["new_evidence"], [1, 1, 0, NAN, 0, NAN])
    assert any("1 supporting document of the tasks is not in the corpus" in note for note in table.notes)


def test_evidence_needs_documents() -> None:
    tasks = [Task(id="q", question="Where?", golden_answers=("x",), supporting=("lost",))]
    with pytest.raises(InvalidValueError, match="no task has a supporting document in the corpus"):
        Evidence.of(tasks, [Document(id="a", contents="text")])
    assert words("Año 3, «b»!") == " año 3 b "
    assert words("...") == ""


def test_redundancy_needs_a_tool_that_is_known() -> None:
    same = with_calls(
        rollout(1, [[1.0]] * 3), *[{"arguments": '{"query": "Mira"}', "result": "Mira lives in Tarsa."}] * 2
    )
    for kind, second in (("read", 0), ("poll", 1), ("unknown", NAN)):
        table = build_table([same], calls=CallTable.of([same], tools={"search": kind}))
        np.testing.assert_allclose(table.labels["not_redundant"], [1, second])


def last_entropy(h: SegmentEntropies) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Entropy after the round."""
    return h.point[1:], h.lower[1:], h.upper[1:]


def test_a_signal_of_ones_own(trajectory: Trajectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by its place, or registered; both turned like the others."""
    path = f"{__name__}:last_entropy"
    table = build_table([trajectory], signals=[path])
    np.testing.assert_allclose(table.signals[path], [-1, -1.5, -0.5])
    assert signal_note(path) == "a signal of the user's own"
    monkeypatch.setattr(SIGNALS, "_entries", dict(SIGNALS._entries))
    SIGNALS.register("last", title="H after", unit="nats", fit=PositionBaseline)(lambda h, fit: last_entropy(h))
    others = [rollout(i, [[1.0], [0.97]]) for i in range(9)]
    np.testing.assert_allclose(build_table([trajectory, *others]).signals["last"][:3], [-1, -1.5, -0.5])


def test_probe_and_user_columns() -> None:
    trajectories = [rollout(i, [[2.0], [1.0], [1.5]]) for i in range(2)]
    probe = {("t0", "0.0"): {"delta_h_placebo": -0.4, "gain_none": 1.5, "useful": 1.0, "segment_tokens": 9.0}}
    columns = {("t1", "1.0"): {"good": 1.0, "grade": 0.3}, ("t1", "0.0"): {"good": 0.0}, ("t7", "0.0"): {"good": 1.0}}
    table = build_table(trajectories, probe=probe, columns=columns)
    np.testing.assert_allclose(table.signals["placebo_controlled"], [0.4, NAN, NAN, NAN])
    np.testing.assert_allclose(table.signals["gold_gain"], [1.5, NAN, NAN, NAN])
    np.testing.assert_allclose(table.labels["useful"], [1, NAN, NAN, NAN])
    np.testing.assert_allclose(table.labels["good"], [NAN, NAN, 0, 1])
    np.testing.assert_allclose(table.labels["grade"], [NAN, NAN, NAN, 0.3])
    assert "segment_tokens" not in table.labels
    assert table.notes == ("1 row of the labels belongs to no call of the traces",)
    assert {"useful", "delta_h_placebo", "gain_none"} == PROBE_COLUMNS
    assert set(LABELS) >= {"useful", "correct"}


@pytest.mark.parametrize("name", LABELS)
def test_a_users_column_has_no_name_of_the_studys_own_labels(name: str) -> None:
    """Whether or not this study has that label: its description would be the built-in one's."""
    with pytest.raises(InvalidValueError, match=f"the labels have a column '{name}', .* another name"):
        build_table([rollout(0, [[2.0], [1.0]])], columns={("t0", "0.0"): {name: 1.0}})


def test_values_of_other_traces_are_refused() -> None:
    trajectories = [rollout(0, [[2.0], [1.0]])]
    with pytest.raises(InvalidValueError, match=r"no row of the labels belongs to a call.*trajectory 'x', call 'y'"):
        build_table(trajectories, columns={("x", "y"): {"good": 1.0}})
    with pytest.raises(InvalidValueError, match="no row of the probe"):
        build_table(trajectories, probe={})
    with pytest.raises(InvalidValueError, match="no tool call"):
        build_table([rollout(0, [[2.0]])])


def test_shared_ids_are_announced() -> None:
    table = build_table([rollout(0, [[2.0], [1.0]]), rollout(0, [[2.0], [1.5]])])
    assert any("share an id" in note for note in table.notes)


def test_a_table_checks_its_columns() -> None:
    with pytest.raises(InvalidValueError, match=r"column 'x' has shape \(3,\); the table has 2 calls"):
        make_table([0, 1], {"x": [1, 2, 3]}, {})

"""Summaries: hand-computed ratios, intervals that cover, pairs that cancel, nothing that becomes zero."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import make_trajectory
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from deltah import CallTable, Trajectory, batch_metrics, score
from deltah.calls.grading import cluster_key
from deltah.errors import InvalidValueError
from deltah.stats.bootstrap import Estimate, interval, ratio_replicates
from deltah.stats.summary import BY_TOOL, OTHER_TOOLS, STATISTICS, calls_by, compare, log_metrics, summarise, table
from deltah.text_format import number


def rollout(
    segments: list[list[float]], outcome: float | None, task: int, *, needs_tools: bool = True, **fields: Any
) -> Trajectory:
    return make_trajectory(
        segments,
        id=f"t{task}",
        outcome=outcome,
        metadata={"task_id": f"task{task}", "needs_tools": needs_tools},
        **fields,
    )


def three() -> list[Trajectory]:
    """Calls 3, 1, 0; reduced 2, 0, 0; outcomes 1, 0.5, 1; sampled tokens 6 + 9, 2 + 3, 1."""
    return [
        rollout([[2.0, 2.0], [1.0], [1.0, 2.0], [0.5]], 1.0, 1),
        rollout([[1.0], [3.0]], 0.5, 2),
        rollout([[1.0]], 1.0, 3, needs_tools=False),
    ]


def test_hand_computed() -> None:
    s = summarise(three())
    assert (s.questions, s.trajectories, s.calls) == (3, 3, 4)
    assert s.outcome.value == pytest.approx(2.5 / 3)
    assert s.accuracy.value == pytest.approx(2 / 3)
    assert s.calls_per_trajectory.value == pytest.approx(4 / 3)
    assert s.correct_per_call.value == pytest.approx(2 / 4)
    assert s.reduction_rate.value == pytest.approx(2 / 4)
    assert s.mean_value.value == pytest.approx((-1 + 0.5 - 1 + 2) / 4)
    assert s.no_call.value == pytest.approx(1 / 3)
    assert s.sampled_tokens.value == pytest.approx((15 + 5 + 1) / 3)
    assert (s.undecided.value, s.undefined.value) == (0, 0)
    assert (s.outcome.n, s.reduction_rate.n) == (3, 4)


def test_undefined_calls_count_in_n_and_are_left_out_of_the_mean() -> None:
    s = summarise([rollout([[2.0], [1.0], [0.5]], 1.0, 1, unanswered_last=True)])
    assert s.reduction_rate.value == 0.5
    assert s.undefined.value == 0.5
    assert (s.mean_value.value, s.mean_value.n, s.mean_value.left_out) == (-1.0, 1, 1)


def test_wide_intervals_are_undecided() -> None:
    s = summarise([rollout([[2.0], [1.9]], 1.0, 1, half_width=0.5)])
    assert (s.undecided.value, s.reduction_rate.value) == (1.0, 0.0)


def test_nothing_is_nan_and_counted() -> None:
    empty = summarise([])
    assert all(
        math.isnan(e.value) and math.isnan(e.low) and e.n == 0 for e in (getattr(empty, name) for name in STATISTICS)
    )
    ungraded = summarise([rollout([[2.0], [1.0]], None, 1), rollout([[2.0], [1.0]], 1.0, 2)])
    assert (ungraded.outcome.value, ungraded.outcome.n, ungraded.outcome.left_out) == (1.0, 1, 1)
    assert (ungraded.correct_per_call.value, ungraded.correct_per_call.left_out) == (1.0, 1)
    bare = rollout([[2.0], [1.0]], 1.0, 1)
    unmeasured = Trajectory(id="u", segments=bare.segments, calls=bare.calls, outcome=1.0)
    s = summarise([unmeasured])
    assert math.isnan(s.reduction_rate.value)
    assert s.reduction_rate.left_out == 1
    assert s.calls_per_trajectory.value == 1.0
    assert math.isnan(summarise([rollout([[1.0]], 1.0, 1)]).correct_per_call.value)


def test_signals_must_fit_their_trajectories() -> None:
    trajectories = three()
    with pytest.raises(InvalidValueError, match="2 signals for 3"):
        summarise(trajectories, [score(t) for t in trajectories[:2]])
    with pytest.raises(InvalidValueError, match="order of the trajectories"):
        summarise(trajectories, [score(t) for t in reversed(trajectories)])


def test_cluster_is_task_then_question_then_id() -> None:
    t = rollout([[1.0]], 1.0, 7, question="who?")
    assert cluster_key(t) == ("task_id", "task7")
    assert cluster_key(t, "family") == ("question", "who?")
    assert cluster_key(make_trajectory([[1.0]], id="x")) == ("id", "x")


def test_repeated_questions_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    outcomes = rng.integers(0, 2, 30).astype(float)
    alone = summarise([rollout([[1.0]], o, i) for i, o in enumerate(outcomes)])
    copied = summarise([rollout([[1.0]], o, i, group_id=str(c)) for i, o in enumerate(outcomes) for c in range(8)])
    assert (copied.questions, copied.trajectories) == (30, 240)
    expected = alone.outcome
    assert copied.outcome == Estimate(value=expected.value, low=expected.low, high=expected.high, n=240, left_out=0)


@pytest.mark.parametrize("clusters", [15, 60])
def test_coverage_of_a_clustered_ratio(clusters: int) -> None:
    """Correlated numerator and random denominator; nominal 95 %, 400 samples: standard error 1.1 %."""
    rng, covered, truth = np.random.default_rng(1), 0, 0.5
    for trial in range(400):
        calls = rng.poisson(2.0, clusters) + 1.0
        rate = rng.beta(3, 3, clusters)
        reduced = rng.binomial(calls.astype(int), rate).astype(float)
        replicates = ratio_replicates(reduced[:, None], calls[:, None], resamples=800, seed=trial)
        low, high = interval(replicates[:, 0], clusters)
        covered += low <= truth <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_a_rate_on_which_all_questions_agree_is_not_certain() -> None:
    """Ten right answers in ten questions, as bounded by Clopper and Pearson; a count of calls keeps its zero width."""
    s = summarise([rollout([[2.0], [1.0]], 1.0, i) for i in range(10)])
    exact = binomtest(10, 10).proportion_ci(method="exact")
    for rate in (s.accuracy, s.outcome, s.reduction_rate):
        assert (rate.low, rate.high) == pytest.approx((exact.low, 1.0))
    assert (s.no_call.low, s.no_call.high) == pytest.approx((0.0, 1.0 - exact.low))
    assert (s.calls_per_trajectory.low, s.calls_per_trajectory.high) == (1.0, 1.0)


def test_many_clusters_are_resampled_in_groups_without_changing_the_interval() -> None:
    """Against the delta method, whose standard error of a ratio is exact for so many clusters."""
    rng = np.random.default_rng(3)
    calls = rng.poisson(3.0, 30_000) + 1.0
    reduced = rng.binomial(calls.astype(int), rng.beta(2, 5, len(calls))).astype(float)
    replicates = ratio_replicates(reduced[:, None], calls[:, None])[:, 0]
    rate = reduced.sum() / calls.sum()
    error = float(np.sqrt(((reduced - rate * calls) ** 2).sum())) / calls.sum()
    assert replicates.mean() == pytest.approx(rate, abs=error / 10)
    assert replicates.std() == pytest.approx(error, rel=0.08)  # 2000 resamples of 2000 groups: 1.6 % each


def test_groups_of_clusters_keep_two_sides_paired() -> None:
    rng = np.random.default_rng(4)
    a, ones = rng.random((5000, 1)), np.ones((5000, 1))
    difference = ratio_replicates(a + 0.25, ones) - ratio_replicates(a, ones)
    assert np.allclose(difference, 0.25, atol=1e-12)


def test_pairing_cancels_what_is_hard_for_both() -> None:
    rng = np.random.default_rng(2)
    hard = rng.random(60)
    a = [rollout([[1.0]], float(h), i) for i, h in enumerate(hard)]
    b = [rollout([[1.0]], float(min(1.0, h + 0.02)), i) for i, h in enumerate(hard)]
    difference = compare(a, b).outcome
    assert difference.value == pytest.approx(0.02, abs=0.003)
    assert difference.high - difference.low < 0.01
    single = summarise(b).outcome
    assert single.high - single.low > 0.1


def test_compare_keeps_shared_questions_only() -> None:
    a = [rollout([[1.0]], 1.0, i) for i in range(4)]
    b = [rollout([[1.0]], 0.0, i) for i in range(2, 7)]
    c = compare(a, b)
    assert (c.questions, c.left_out, c.outcome.value) == (2, 5, -1.0)
    assert math.isnan(c.outcome.low)  # two pairs carry no interval
    assert math.isnan(compare(a, []).outcome.value)


def test_compare_with_itself_is_zero() -> None:
    same = compare(three() * 2, three() * 2)
    for estimate in (getattr(same, name) for name in STATISTICS):
        assert estimate.value == 0


def test_same_seed_same_interval() -> None:
    trajectories = [rollout([[2.0], [1.0]], float(i % 2), i) for i in range(20)]
    assert summarise(trajectories, seed=3) == summarise(trajectories, seed=3)
    with pytest.raises(InvalidValueError, match="resamples is 5"):
        summarise(trajectories, resamples=5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=5, max_size=30))
def test_intervals_hold_the_value_and_stay_in_range(outcomes: list[float]) -> None:
    f1 = summarise([rollout([[1.0]], o, i) for i, o in enumerate(outcomes)], resamples=200).outcome
    assert 0 <= f1.low <= f1.high <= 1 + 1e-12
    assert f1.value == pytest.approx(np.mean(outcomes))


def test_calls_are_counted_by_trajectory_and_the_title_says_so() -> None:
    """Two trajectories of one question, one call and three: two a trajectory, four a question."""
    one, three_calls = (rollout(rows, 1.0, 0) for rows in ([[1.0], [0.5]], [[1.0], [0.5], [0.4], [0.3]]))
    summary = summarise([one, three_calls])
    assert (summary.questions, summary.trajectories) == (1, 2)
    (column,), _ = table({"a": summary}, columns=("calls_per_trajectory",))
    assert (column.title, summary.calls_per_trajectory.value) == ("calls / trajectory", 2.0)


def test_a_rise_of_entropy_has_its_sign() -> None:
    rise, fall = (summarise([rollout([[1.0], [after]], 1.0, 0)]) for after in (1.5, 0.5))
    _, rows = table({"rise": rise, "fall": fall}, columns=("outcome", "mean_value"))
    assert [[cell.text for cell in row] for row in rows.values()] == [["1.000", "+0.500"], ["1.000", "−0.500"]]


def test_table_has_one_source_of_digits() -> None:
    summaries = {"start": summarise(three() * 5), "other": summarise([])}
    columns, rows = table(summaries, seconds={"start": 12.4})
    assert [c.key for c in columns] == [
        "outcome",
        "calls_per_trajectory",
        "correct_per_call",
        "reduction_rate",
        "seconds",
    ]
    assert str(rows["start"][-1]) == "12"
    assert str(rows["start"][0]).startswith("0.833")
    assert [cell.text for cell in rows["other"]] == ["–"] * 5
    assert set(STATISTICS) >= {"outcome", "reduction_rate"}


def test_numbers() -> None:
    assert number(-1.5, 2) == "−1.50"
    assert number(0.25, 2, signed=True) == "+0.25"
    assert number(-0.001, 2, signed=True) == "0.00"
    assert number(float("nan"), 2) == number(None, 2) == number(float("inf"), 1) == "–"
    assert number(1234567.0, 0) == "1,234,567"


def test_groups_of_calls_by_hand() -> None:
    t = make_trajectory([[2.0], [1.0], [3.0]], calls_per_round=[2, 1])
    first, second = calls_by(CallTable.of([t]), "round").values()
    assert (first.n, first.reduction_rate.value, first.mean_value.value) == (2, 1.0, -1.0)
    assert (second.n, second.reduction_rate.value, second.mean_value.value) == (1, 0.0, 2.0)


def test_unmeasured_and_unanswered_calls_are_counted() -> None:
    t = make_trajectory([[2.0], [1.0], [0.5]], unanswered_last=True)
    table = CallTable.of([t, Trajectory(id="b", segments=t.segments, calls=t.calls)])
    (s,) = calls_by(table, "true").values()
    assert (s.n, s.unanswered, s.undefined, s.told) == (4, 2, 1, 1)
    assert (s.reduction_rate.value, s.reduction_rate.n, s.reduction_rate.left_out) == (0.5, 2, 2)
    assert (s.mean_value.n, s.mean_value.left_out) == (1, 3)
    assert calls_by(CallTable.of([]), "round") == {}


def test_tools_are_told_apart_in_the_order_they_are_met_up_to_a_limit() -> None:
    t = make_trajectory([[1.0]] * 8)
    names = ("t0", "t1", "t2", "t3", "t1", "", "x" * 200)
    table = CallTable.of([replace(t, calls=tuple(replace(c, name=n) for c, n in zip(t.calls, names, strict=True)))])
    assert {name: s.n for name, s in calls_by(table, BY_TOOL).items()} == {
        "t0": 1,
        "t1": 2,
        "t2": 1,
        "t3": 1,
        "": 1,
        "x" * 100: 1,
    }
    few = BY_TOOL.replace("LIMIT 1000", "LIMIT 2")
    assert {name: s.n for name, s in calls_by(table, few).items()} == {"t0": 1, "t1": 2, OTHER_TOOLS: 4}


def random_table(n_questions: int) -> tuple[CallTable, list[Trajectory]]:
    rng = np.random.default_rng(5)
    rows = [
        rollout(rng.gamma(2.0, 1.0, (int(rng.integers(1, 4)), 1)).tolist(), float(rng.integers(2)), i, half_width=0.2)
        for i in range(n_questions)
    ]
    return CallTable.of(rows), rows


def test_many_questions_are_resampled_in_groups_without_changing_value_or_interval() -> None:
    table, _ = random_table(2600)
    grouped = calls_by(table, "true")[True]
    replicates = ratio_replicates(*table_sums(table), resamples=2000)[:, 0]
    low, high = interval(replicates, 2600)
    assert grouped.mean_value.value == pytest.approx(table.sql("SELECT avg(value) FROM calls").fetchall()[0][0])
    assert grouped.mean_value.high - grouped.mean_value.low == pytest.approx(high - low, rel=0.12)
    whole = summarise(table)
    assert (whole.questions, whole.trajectories) == (2600, 2600)
    assert whole.mean_value.high - whole.mean_value.low == pytest.approx(high - low, rel=0.12)


def table_sums(table: CallTable) -> tuple[np.ndarray, np.ndarray]:
    found = table.sql("SELECT sum(value), count(value) FROM calls GROUP BY cluster").fetchall()
    sums, counts = np.array(found, dtype=float).T
    return sums[:, None], counts[:, None]


def test_metrics_of_a_log_are_those_of_its_batch() -> None:
    table, rows = random_table(40)
    table.add(replace(rows[0], entropy=None, entropy_lower=None, entropy_upper=None, estimator="none"), None)
    row = batch_metrics([score(t) for t in rows], np.array([t.outcome for t in rows]))
    assert log_metrics(table) == pytest.approx(row, rel=1e-12)
    assert all(math.isnan(value) for value in log_metrics(CallTable.of([])).values())

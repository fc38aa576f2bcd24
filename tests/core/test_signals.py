"""Segments and signals: hand-computed ΔH, three-valued verdicts, intervals that contain the truth."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from builders import make_trajectory
from hypothesis import given
from hypothesis import strategies as st

from deltah import PositionBaseline, SignalConfig, Trajectory, Verdict, dense_reward, score, sparse_reward
from deltah.core.metrics import REDUCTION_RATE, SIGNAL_MEAN, UNDEFINED_RATE, batch_metrics
from deltah.core.segments import segment_entropies
from deltah.core.signals import SIGNALS, delta_h
from deltah.errors import InvalidValueError


def test_hand_computed(trajectory: Trajectory) -> None:
    signal = score(trajectory)
    np.testing.assert_allclose(signal.segment_entropy, [2.0, 1.0, 1.5, 0.5])
    np.testing.assert_allclose(signal.value, [-1.0, 0.5, -1.0])
    assert signal.reduced.tolist() == [True, False, True]
    assert (signal.n_calls, signal.n_reduced) == (3, 2)
    assert signal.segment_tokens.tolist() == [2, 1, 2, 1]


def test_ratio_form(trajectory: Trajectory) -> None:
    np.testing.assert_allclose(score(trajectory, name="ratio").value, [-0.5, 0.5, -2 / 3], atol=1e-7)


def test_a_signal_is_named_in_three_ways(trajectory: Trajectory) -> None:
    found = [score(trajectory, "ratio", margin=0.1), score(trajectory, SignalConfig(name="ratio"), margin=0.1)]
    assert [(s.name, s.unit, s.margin) for s in found] == [("ratio", "", 0.1)] * 2
    assert score(trajectory).unit == "nats"
    assert delta_h(segment_entropies(trajectory)).point.tolist() == [-1.0, 0.5, -1.0]


def test_entropy_before_and_cumulative(trajectory: Trajectory) -> None:
    before = score(trajectory, name="entropy_before")
    np.testing.assert_allclose(before.value, [-2.0, -1.0, -1.5])
    assert before.reduced.all()  # all above ln 2
    np.testing.assert_allclose(score(trajectory, name="cumulative").value, [-1.0, -0.5, -1.5])


def test_the_rounding_of_sums_is_no_reduction() -> None:
    """0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ in the last bit of float64, and so do their means."""
    before, after = [0.1, 0.2, 0.3], [0.3, 0.2, 0.1]
    assert sum(after) < sum(before)
    signal = score(make_trajectory([before, after]))
    assert (signal.value[0], signal.verdicts[0]) == (0.0, Verdict.NOT_REDUCED)


def test_margin_is_a_strict_dead_band(trajectory: Trajectory) -> None:
    assert score(trajectory, margin=1.0).reduced.tolist() == [False, False, False]
    assert score(trajectory, margin=0.999).reduced.tolist() == [True, False, True]


def test_call_and_control_tokens_are_pooled_only_on_request(trajectory: Trajectory) -> None:
    pooled = segment_entropies(trajectory, "reasoning_and_call")
    np.testing.assert_allclose(pooled.point[0], (2 + 2 + 9 + 9) / 4)
    assert pooled.n_tokens.tolist() == [4, 3, 4, 1]


def test_tail_pool_keeps_the_last_tokens_of_each_segment() -> None:
    t = make_trajectory([[3.0, 2.0, 1.0], [5.0]])
    assert segment_entropies(t, "tail", tail_tokens=2).n_tokens.tolist() == [2, 1]
    np.testing.assert_allclose(score(t, name="tail", tail_tokens=2).segment_entropy, [1.5, 5.0])


def test_parallel_calls_share_one_round() -> None:
    signal = score(make_trajectory([[2.0], [1.0], [3.0]], calls_per_round=[3, 1]))
    assert signal.value.tolist() == [-1.0, 2.0]
    assert signal.call_value.tolist() == [-1.0, -1.0, -1.0, 2.0]
    assert (signal.n_calls, signal.n_reduced, signal.n_rounds) == (4, 3, 2)


def test_unanswered_call_is_undefined_and_counted() -> None:
    signal = score(make_trajectory([[2.0], [1.0], []], unanswered_last=True))
    assert signal.verdicts == (Verdict.REDUCED, Verdict.UNDEFINED)
    assert np.isnan(signal.value[1])
    assert (signal.n_calls, signal.n_reduced, signal.call_verdicts.count(Verdict.UNDEFINED)) == (2, 1, 1)


def half_answered(values: list[float]) -> Trajectory:
    """Rounds of two calls each of which only the first was answered."""
    t = make_trajectory([[h] for h in values], calls_per_round=[2] * (len(values) - 1))
    calls = [c if i % 2 == 0 else replace(c, status="unanswered", result=None) for i, c in enumerate(t.calls)]
    return replace(t, calls=tuple(calls))


def test_unanswered_call_beside_an_answered_one_counts_in_n_only() -> None:
    signal = score(half_answered([2.0, 1.0, 3.0]))
    assert signal.verdicts == (Verdict.REDUCED, Verdict.NOT_REDUCED)
    assert signal.call_verdicts == (
        Verdict.REDUCED,
        Verdict.UNDEFINED,
        Verdict.NOT_REDUCED,
        Verdict.UNDEFINED,
    )
    assert signal.call_reduced.tolist() == [True, False, False, False]
    assert (signal.n_calls, signal.n_reduced, signal.call_verdicts.count(Verdict.UNDEFINED)) == (4, 1, 2)
    for values, round_value in ((signal.call_value, 2.0), (signal.call_lower, 2.0), (signal.call_upper, 2.0)):
        np.testing.assert_array_equal(values, [-1.0, np.nan, round_value, np.nan])
    assert sparse_reward(signal, 1.0) == 0.25
    assert dense_reward(signal, 1.0, alpha=0.5).tolist() == [1.5, 1.0, 1.0, 1.0]
    row = batch_metrics([signal], np.array([1.0]))
    assert (row[REDUCTION_RATE], row[UNDEFINED_RATE], row[SIGNAL_MEAN]) == (0.25, 0.5, 0.5)


def test_empty_segment_is_undefined_on_both_sides() -> None:
    signal = score(make_trajectory([[2.0], [], [1.0]]))
    assert signal.verdicts == (Verdict.UNDEFINED, Verdict.UNDEFINED)
    assert np.isnan(signal.segment_entropy[1])


def test_no_calls() -> None:
    signal = score(make_trajectory([[1.0, 3.0]]))
    assert signal.n_rounds == signal.n_calls == signal.n_reduced == 0
    assert signal.segment_entropy.tolist() == [2.0]


def test_intervals_decide_three_ways() -> None:
    t = make_trajectory([[2.0], [1.0], [0.95], [1.9]], half_width=0.1)
    signal = score(t)
    np.testing.assert_allclose(signal.lower, [-1.2, -0.25, 0.75])
    np.testing.assert_allclose(signal.upper, [-0.8, 0.15, 1.15])
    assert signal.verdicts == (Verdict.REDUCED, Verdict.UNDECIDED, Verdict.NOT_REDUCED)


def test_unbounded_entropy_is_never_certified() -> None:
    h = make_trajectory([[2.0], [0.5]], half_width=0.1)
    open_ended = make_trajectory(
        [[2.0], [0.5]],
        entropy_lower=h.entropy_lower,
        entropy_upper=np.where(np.isnan(h.entropy), np.nan, np.inf),
        half_width=0.1,
    )
    for name in ("delta_h", "ratio", "cumulative"):
        signal = score(open_ended, name=name)
        assert signal.verdicts == (Verdict.UNDECIDED,), name


@given(
    st.lists(st.lists(st.floats(0, 5), min_size=1, max_size=6), min_size=1, max_size=5),
    st.floats(0.0, 1.0),
    st.sampled_from(sorted(set(SIGNALS) - {"position_corrected"})),
)
def test_every_signal_lies_in_its_interval(values: list[list[float]], half_width: float, name: str) -> None:
    signal = score(make_trajectory(values, half_width=half_width), name=name)
    assert (signal.lower <= signal.value + 1e-9).all()
    assert (signal.value <= signal.upper + 1e-9).all()
    exact = score(make_trajectory(values), name=name)
    slack = 1e-9 * (1 + np.abs(exact.value))
    assert (signal.lower <= exact.value + slack).all()
    assert (exact.value <= signal.upper + slack).all()
    for certain, true in zip(signal.verdicts, exact.verdicts, strict=True):
        assert certain in (true, Verdict.UNDECIDED)


def test_position_baseline_removes_a_pure_position_effect() -> None:
    rng = np.random.default_rng(0)
    step = np.array([-1.0, -0.4, -0.1])
    trajectories = [
        make_trajectory([[h] for h in np.concatenate(([3.0], 3.0 + np.cumsum(step + 0.01 * rng.normal(size=3))))])
        for _ in range(50)
    ]
    baseline = PositionBaseline.fit(score(t) for t in trajectories)
    np.testing.assert_allclose(baseline.index_means, step, atol=0.01)
    corrected = [score(t, name="position_corrected", baseline=baseline).value for t in trajectories]
    assert np.abs(np.mean(corrected, axis=0)).max() < 1e-9
    assert 0.3 < np.mean([c < 0 for c in corrected]) < 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "x"}, "unknown signal 'x'; choose one of: delta_h, ratio"),
        ({"pool": "xx"}, "unknown pool 'xx'; choose one of: reasoning, reasoning_and_call, tail"),
        ({"margin": "0.1"}, "margin is '0.1'; expected a number in the signal's unit, 0 or more"),
        ({"margin": float("nan")}, "margin is nan"),
        ({"margin": -1}, "margin is -1"),
        ({"min_tokens": 0}, "min_tokens is 0; expected a number, 1 or more"),
        ({"tail_tokens": "8"}, "tail_tokens is '8'"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        SignalConfig(**options)


def test_bad_options(trajectory: Trajectory) -> None:
    with pytest.raises(InvalidValueError, match="unknown scoring option 'margn'"):
        score(trajectory, margn=1)
    with pytest.raises(InvalidValueError, match=r"score was given 5; .*score\(trajectory, 'ratio'.*delta_h"):
        score(trajectory, 5)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="unknown signal 'ratoi'; choose one of: delta_h, ratio"):
        score(trajectory, "ratoi")
    with pytest.raises(InvalidValueError, match="is fitted on many trajectories first"):
        score(trajectory, name="position_corrected")
    with pytest.raises(InvalidValueError, match="carries no entropies"):
        score(make_trajectory([[1.0]], entropy=None))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda h: (h.point, h.lower, h.upper), r"\[\(4,\), \(4,\), \(4,\)\]; expected an Interval .* shape \(3,\)"),
        (lambda h: h.point[1:], "returned ndarray; expected an Interval"),
        (lambda h: None, "returned NoneType; expected an Interval"),
        (
            lambda h: (h.point[1:], h.upper[1:] + 1.0, h.lower[1:] - 1.0),
            "for round 1; expected lower <= point <= upper",
        ),
        (lambda h: (h.point[1:] + 99.0, h.lower[1:], h.upper[1:]), "expected lower <= point <= upper"),
    ],
)
def test_a_signal_that_gives_no_interval_is_refused(
    trajectory: Trajectory, monkeypatch: pytest.MonkeyPatch, wrong: object, message: str
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "wrong_signal", wrong, raising=False)
    assert len(trajectory.rounds) == 3
    with pytest.raises(InvalidValueError, match=message):
        score(trajectory, f"{__name__}:wrong_signal")

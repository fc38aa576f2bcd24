"""Rewards: hand-computed values, edge cases the sources leave open, the shuffled control."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable

import numpy as np
import pytest
from builders import make_trajectory
from hypothesis import given
from hypothesis import strategies as st

from deltah import (
    Group,
    RewardConfig,
    Signal,
    Trajectory,
    Verdict,
    dense_reward,
    group_rewards,
    score,
    sparse_reward,
    token_advantages,
)
from deltah.core.rewards import REWARDS, CallRewards, SegmentAdvantages, TrajectoryRewards, shuffle_verdicts
from deltah.errors import InvalidValueError


def group_of(entropies: list[list[float]], outcomes: list[float]) -> Group:
    trajectories = [make_trajectory([[h] for h in row], id=str(i)) for i, row in enumerate(entropies)]
    return Group(trajectories=trajectories, signals=[score(t) for t in trajectories], outcomes=np.array(outcomes))


def test_sparse_is_f1_times_m_over_n(trajectory: Trajectory) -> None:
    assert sparse_reward(score(trajectory), 0.6) == pytest.approx(0.6 * 2 / 3)


def test_sparse_without_calls_uses_the_stated_efficiency() -> None:
    signal = score(make_trajectory([[1.0]]))
    assert sparse_reward(signal, 0.6) == 0.6
    assert sparse_reward(signal, 0.6, no_call_efficiency=0.25) == pytest.approx(0.15)


def test_sparse_ignores_the_number_of_calls_at_equal_efficiency() -> None:
    """A known weakness of the form: 1/1 pays as much as 4/4."""
    one, four = make_trajectory([[2.0], [1.0]]), make_trajectory([[5.0], [4.0], [3.0], [2.0], [1.0]])
    assert sparse_reward(score(one), 1.0) == sparse_reward(score(four), 1.0) == 1.0


def test_dense_pays_each_reduced_call(trajectory: Trajectory) -> None:
    np.testing.assert_allclose(dense_reward(score(trajectory), 0.8, alpha=0.5), [1.2, 0.8, 1.2])
    np.testing.assert_allclose(dense_reward(score(trajectory), 0.8, 0.5, reduction_rate=0.5), [1.0, 0.6, 1.0])


def test_baselines() -> None:
    group = group_of([[1, 2, 1, 2], [1]], [0.7, 0.2])
    assert REWARDS["outcome"].value(group).values.tolist() == [0.7, 0.2]
    assert REWARDS["penalty"].value(group, call_penalty=0.1).values == pytest.approx([0.4, 0.2])


def test_otc_peaks_at_the_fewest_calls() -> None:
    """The right trajectory fixes n* at 2, then at 0; the half-right one makes n calls."""
    at_best_two = [otc_totals([(2, 1.0), (n, 0.5)])[1] for n in range(6)]
    assert at_best_two[2] == 0.5
    assert np.argmax(at_best_two) == 2
    assert at_best_two[3] == pytest.approx(0.5 * np.sin(np.pi * 3 / 5))
    at_best_zero = [otc_totals([(0, 1.0), (n, 0.5)])[1] for n in range(6)]
    assert at_best_zero[0] == 0.5
    assert at_best_zero[2] == pytest.approx(0.5 * np.cos(np.pi * 2 / 8))
    assert np.all(np.diff(at_best_zero) < 0)


def otc_totals(calls_and_outcomes: list[tuple[int, float]], **config: float) -> list[float]:
    rows, outcomes = zip(*calls_and_outcomes, strict=True)
    group = group_of([[1.0] * (n + 1) for n in rows], list(outcomes))
    return [r.total for r in group_rewards(group, RewardConfig(name="otc", **config))]


def test_otc_takes_the_fewest_calls_of_correct_trajectories_only() -> None:
    """n* is 2: the half-right trajectory with one call and the wrong one with none do not lower it."""
    found = otc_totals([(3, 1.0), (1, 0.5), (2, 1.0), (0, 0.0)])
    np.testing.assert_allclose(found, [np.sin(np.pi * 3 / 5), 0.5 * np.sin(np.pi / 3), 1.0, 0.0])
    # With half right counted as correct it is 1, and what has one call is at its peak.
    found = otc_totals([(3, 1.0), (1, 0.5), (2, 1.0), (0, 0.0)], correct_at=0.5)
    np.testing.assert_allclose(found, [np.sin(np.pi * 3 / 4), 0.5, np.sin(np.pi * 2 / 3), 0.0])


def test_otc_without_a_correct_trajectory_leaves_the_outcome() -> None:
    assert otc_totals([(3, 0.5), (1, 0.25), (0, 0.75)]) == [0.5, 0.25, 0.75]


def test_otc_smoothing_counts_where_the_best_makes_no_call() -> None:
    found = otc_totals([(0, 1.0), (2, 1.0)], otc_smoothing=2.0)
    np.testing.assert_allclose(found, [1.0, np.cos(np.pi * 2 / 6)])


def test_a_wrong_answer_earns_nothing_from_efficiency(trajectory: Trajectory) -> None:
    signal = score(trajectory)
    assert sparse_reward(signal, 0.0) == 0.0
    assert not dense_reward(signal, 0.0).any()


def test_group_rewards_by_name() -> None:
    group = group_of([[2, 1], [2, 1, 3]], [1.0, 0.5])
    totals = {
        name: [round(r.total, 6) for r in group_rewards(group, RewardConfig(name=name))]
        for name in ("outcome", "sparse", "dense", "penalty", "otc")
    }
    assert totals == {
        "outcome": [1.0, 0.5],
        "sparse": [1.0, 0.25],
        "dense": [1.0, 0.5],
        "penalty": [0.9, 0.3],
        "otc": [1.0, round(0.5 * np.sin(np.pi * 2 / 3), 6)],
    }


def test_a_reward_may_be_named_alone() -> None:
    group = group_of([[2, 1], [2, 1, 3]], [1.0, 0.5])
    assert group_rewards(group, "penalty") == group_rewards(group, RewardConfig(name="penalty"))
    assert group_rewards(group) == group_rewards(group, "sparse")
    assert token_advantages(group, "dense")[0].max() > 0


def test_centred_dense_subtracts_the_group_rate() -> None:
    group = group_of([[2, 1], [2, 1, 3]], [1.0, 1.0])
    processes = [r.process.tolist() for r in group_rewards(group, RewardConfig(name="dense", centred=True))]
    np.testing.assert_allclose(np.concatenate(processes), 1 + 0.5 * (np.array([1, 1, 0]) - 2 / 3))


@given(st.lists(st.lists(st.floats(0, 3), min_size=1, max_size=6), min_size=1, max_size=12), st.integers(0, 999))
def test_shuffle_keeps_the_form_and_the_position_effect(rows: list[list[float]], seed: int) -> None:
    signals = [score(make_trajectory([[h] for h in row])) for row in rows]
    shuffled = shuffle_verdicts(signals, np.random.default_rng(seed))
    assert [s.n_calls for s in shuffled] == [s.n_calls for s in signals]
    for k in range(6):

        def at(batch: list[Signal], k: int = k) -> list[tuple[float, str]]:
            return sorted((float(s.value[k]), s.verdicts[k].value) for s in batch if s.n_rounds > k)

        assert at(shuffled) == at(signals)


def test_shuffle_moves_something_and_is_seeded() -> None:
    rng = np.random.default_rng(1)
    signals = [score(make_trajectory([[h] for h in rng.random(4)])) for _ in range(20)]
    a, b = (shuffle_verdicts(signals, np.random.default_rng(3)) for _ in range(2))
    assert [s.verdicts for s in a] == [s.verdicts for s in b]
    assert [s.verdicts for s in a] != [s.verdicts for s in signals]


def test_shuffle_leaves_rounds_without_an_answer_alone() -> None:
    """They have no verdict to give, and one given to them could not count: m of the batch would change."""
    rng = np.random.default_rng(5)
    rows = [[[h] for h in rng.random(3)] for _ in range(12)]
    signals = [score(make_trajectory(row, unanswered_last=i % 2 == 0)) for i, row in enumerate(rows)]
    shuffled = shuffle_verdicts(signals, rng)
    assert [s.verdicts[1] is Verdict.UNDEFINED for s in shuffled] == [i % 2 == 0 for i in range(12)]
    assert sum(s.n_reduced for s in shuffled) == sum(s.n_reduced for s in signals)
    assert [s.verdicts for s in shuffled] != [s.verdicts for s in signals]


def test_bad_arguments(trajectory: Trajectory) -> None:
    with pytest.raises(InvalidValueError, match="unknown reward 'sparce'; choose one of: outcome, sparse"):
        RewardConfig(name="sparce")
    with pytest.raises(InvalidValueError, match="alpha is -1; expected a number, from 0 to 100"):
        RewardConfig(alpha=-1)
    with pytest.raises(InvalidValueError, match="centred is 1; expected true or false"):
        RewardConfig(name="dense", centred=1)
    with pytest.raises(InvalidValueError, match="the reward 'dense' has no option 'alhpa'; it has: alpha, centred"):
        RewardConfig(name="dense", alhpa=1)
    with pytest.raises(InvalidValueError, match="unknown pooling 'pool'; choose one of: pooled, trajectory_mean"):
        RewardConfig(pooling="pool")
    with pytest.raises(InvalidValueError, match=r"outcome is 1\.5"):
        sparse_reward(score(trajectory), 1.5)


def test_options_are_flat_or_a_table_and_complete_in_a_record() -> None:
    flat = RewardConfig(name="dense", alpha=0.3, call_penalty=0.2)
    assert flat == RewardConfig(name="dense", options={"alpha": 0.3, "call_penalty": 0.2})
    assert flat.arguments == {"alpha": 0.3, "centred": False}
    record = {"name": "dense", "alpha": 0.3, "centred": False, "call_penalty": 0.2, "pooling": "pooled", "scale": True}
    assert flat.to_dict() == {**record, "eps": 1e-4, "correctness_first": False, "correct_at": 1.0}
    assert RewardConfig(**flat.to_dict()).arguments == flat.arguments
    assert RewardConfig(name="otc", correct_at=0.5).arguments == {"otc_smoothing": 4.0, "correct_at": 0.5}


def test_a_control_over_the_batch_is_refused_for_one_group() -> None:
    group = group_of([[2, 1], [1, 2]], [1.0, 1.0])
    for ask in (group_rewards, token_advantages):
        with pytest.raises(InvalidValueError, match=r"'shuffled' changes the signals of a whole batch.*batch_credit\("):
            ask(group, RewardConfig(name="shuffled"))


@pytest.fixture
def own_reward(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], RewardConfig]:
    """Configuration of a reward that returns what it is given."""

    def config(result: object) -> RewardConfig:
        module = types.ModuleType("my_rewards")
        module.pay = lambda group: result  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "my_rewards", module)
        return RewardConfig(name="my_rewards:pay", scale=False)

    return config


def test_a_reward_is_told_by_what_it_returns(own_reward: Callable[[object], RewardConfig]) -> None:
    """Two calls and none; outcomes 1 and 0, whose advantages are half and minus half."""
    group = group_of([[2, 1, 3], [1]], [1.0, 0.0])
    #  prompt 4 | r0, call, call, control | result x3 | r1, call, call, control | result x3 | r2
    a, b = token_advantages(group, own_reward(TrajectoryRewards([3.0, 1.0])))
    assert (a.tolist(), b.tolist()) == ([0] * 4 + [1] * 4 + [0] * 3 + [1] * 4 + [0] * 3 + [1], [0] * 4 + [-1])
    a, b = token_advantages(group, own_reward(CallRewards([np.array([5.0, 1.0]), np.zeros(0)])))
    assert (a.tolist(), b.tolist()) == ([0] * 4 + [2] * 4 + [0] * 3 + [-2] * 4 + [0] * 3 + [0.5], [0] * 4 + [-0.5])
    a, b = token_advantages(group, own_reward(SegmentAdvantages([np.array([7.0, 8.0, 9.0]), np.array([-4.0])])))
    assert (a.tolist(), b.tolist()) == ([0] * 4 + [7] * 4 + [0] * 3 + [8] * 4 + [0] * 3 + [9], [0] * 4 + [-4])
    totals = [r.total for r in group_rewards(group, own_reward(SegmentAdvantages([np.ones(3), np.ones(1)])))]
    assert totals == [1.0, 0.0]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0, 2.0], "returned a list; expected TrajectoryRewards, CallRewards or SegmentAdvantages"),
        (TrajectoryRewards([1.0]), r"returned TrajectoryRewards of shapes \[\(1,\)\]; expected .* \[\(2,\)\]"),
        (TrajectoryRewards([1.0, float("nan")]), "expected finite numbers"),
        (CallRewards([np.zeros(1), np.zeros(0)]), r"expected finite numbers of shapes \[\(2,\), \(0,\)\]"),
        (SegmentAdvantages([np.zeros(2), np.zeros(1)]), r"expected finite numbers of shapes \[\(3,\), \(1,\)\]"),
    ],
)
def test_a_wrong_result_is_one_sentence(
    own_reward: Callable[[object], RewardConfig], result: object, message: str
) -> None:
    with pytest.raises(InvalidValueError, match=message):
        group_rewards(group_of([[2, 1, 3], [1]], [1.0, 0.0]), own_reward(result))


def scaled_by_ten(group: Group, *, scale: float = 10.0) -> TrajectoryRewards:
    return TrajectoryRewards(group.outcomes * scale)


def test_an_option_that_a_field_would_replace_is_refused() -> None:
    with pytest.raises(InvalidValueError, match=r"the option 'scale' of reward .* is also a field of RewardConfig"):
        RewardConfig(f"{__name__}:scaled_by_ten")

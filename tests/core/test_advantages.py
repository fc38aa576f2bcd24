"""Advantages: hand-computed token values, masks, correctness-first, and the length bias of each pooling rule."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from builders import make_trajectory
from hypothesis import given
from hypothesis import strategies as st

from deltah import Group, RewardConfig, SegmentKind, score, token_advantages
from deltah.core.advantages import call_advantages, normalise, trajectory_advantages
from deltah.core.rewards import REWARDS


def group_of(entropies: list[list[float]], outcomes: list[float], **fields: object) -> Group:
    trajectories = [make_trajectory([[h] for h in row], id=str(i), **fields) for i, row in enumerate(entropies)]
    return Group(trajectories=trajectories, signals=[score(t) for t in trajectories], outcomes=np.array(outcomes))


groups = st.lists(
    st.tuples(st.lists(st.floats(0, 3), min_size=1, max_size=5), st.sampled_from([0.0, 0.4, 1.0])),
    min_size=2,
    max_size=6,
).map(lambda rows: group_of([r[0] for r in rows], [r[1] for r in rows]))


def test_normalise_is_grpo() -> None:
    values = np.array([1.0, 0.0, 0.5, 0.5])
    np.testing.assert_allclose(normalise(values), (values - 0.5) / (np.std(values, ddof=1) + 1e-4))
    assert normalise(np.ones(1)).tolist() == [0.0]


def test_sparse_tokens_share_their_trajectory_advantage() -> None:
    group = group_of([[2, 1], [1, 2]], [1.0, 1.0])  # m/n = 1 and 0
    first, second = token_advantages(group, RewardConfig(name="sparse"))
    expected = 0.5 / (np.sqrt(0.5) + 1e-4)
    mask = group.trajectories[0].response_mask
    np.testing.assert_allclose(first, expected * mask)
    np.testing.assert_allclose(second, -first)


def test_dense_tokens_hand_computed() -> None:
    """Two calls in one trajectory, none in the other."""
    group = group_of([[2, 1, 3], [1]], [1.0, 0.0])
    config = RewardConfig(name="dense", alpha=0.5)
    # Call rewards 1.5 and 1.0: mean 1.25, std 0.3536. Outcomes 1 and 0: +-0.5 / (0.7071 + 1e-4).
    a = 0.25 / (np.std([1.5, 1.0], ddof=1) + 1e-4)
    o = 0.5 / (np.std([1.0, 0.0], ddof=1) + 1e-4)
    tokens, without_calls = token_advantages(group, config)
    # prompt 4 | r0, call, call, control | result x3 | r1, call, call, control | result x3 | r2
    np.testing.assert_allclose(tokens, [0] * 4 + [a] * 4 + [0] * 3 + [-a] * 4 + [0] * 3 + [o])
    np.testing.assert_allclose(without_calls, [0] * 4 + [-o])


def test_parallel_calls_share_the_mean_of_their_advantages() -> None:
    t = [make_trajectory([[2.0], [1.0]], calls_per_round=[2], id="a"), make_trajectory([[1.0], [2.0]], id="b")]
    group = Group(trajectories=t, signals=[score(x) for x in t], outcomes=np.array([1.0, 1.0]))
    config = RewardConfig(name="dense")
    per_call = call_advantages(group, config)
    assert [len(c) for c in per_call] == [2, 1]
    np.testing.assert_allclose(token_advantages(group, config)[0][4], per_call[0].mean())


@given(groups, st.sampled_from(REWARDS), st.booleans())
def test_only_sampled_tokens_carry_an_advantage(group: Group, name: str, first: bool) -> None:
    config = RewardConfig(name=name, correctness_first=first)
    for trajectory, advantages in zip(group.trajectories, token_advantages(group, config), strict=True):
        assert advantages.shape == (len(trajectory),)
        assert np.isfinite(advantages).all()
        assert not advantages[~trajectory.response_mask].any()
        assert not advantages[trajectory.mask([SegmentKind.RESULT, SegmentKind.PROMPT])].any()


@given(groups, st.sampled_from(["sparse", "penalty", "otc", "shuffled"]))
def test_correctness_first_never_reverses_a_sign(group: Group, name: str) -> None:
    config = RewardConfig(name=name, correctness_first=True)
    advantages = trajectory_advantages(group, config)
    correct = group.outcomes >= 1.0
    assert (advantages[correct] >= 0).all()
    if correct.any() and not correct.all():
        assert advantages[correct].min() >= advantages[~correct].max() - 1e-12


def test_sign_reversal_of_the_plain_form_and_its_cure() -> None:
    """AdaTIR's fault: a correct trajectory with small m/n falls below a half-right one."""
    group = group_of([[1, 2, 3, 4], [2, 1]], [1.0, 0.5])
    plain = trajectory_advantages(group, RewardConfig(name="sparse"))
    assert plain[0] < 0 < plain[1]
    cured = trajectory_advantages(group, RewardConfig(name="sparse", correctness_first=True))
    assert cured[0] >= max(cured[1], 0)


def test_correctness_first_still_orders_correct_trajectories() -> None:
    group = group_of([[2, 1], [1, 2], [1]], [1.0, 1.0, 0.0])
    a = trajectory_advantages(group, RewardConfig(name="sparse", correctness_first=True))
    assert a[0] > a[1] >= 0 > a[2]


@pytest.mark.parametrize("pooling", ["pooled", "trajectory_mean", "leave_one_out"])
def test_a_lone_call_has_no_advantage(pooling: str) -> None:
    group = group_of([[2, 1], [1]], [1.0, 0.0])
    assert call_advantages(group, RewardConfig(name="dense", pooling=pooling))[0].tolist() == [0.0]


def expected_length_gradient(
    pooling: str, *, reduces: tuple[float, float] = (0.5, 0.5), right: tuple[float, float] = (0.5, 0.5)
) -> float:
    """Exact gradient of the dense objective with respect to the logit of "make a second call", in a toy MDP.

    A policy makes one call, then a second one with probability 1/2. Call k reduces entropy with probability
    `reduces[k]`; a trajectory of n calls is right with probability `right[n - 1]`. The expectation runs over all groups
    of two; the decision stands on r_1, whose token issues call 2 or, in the final segment, stops.
    """
    config = RewardConfig(name="dense", pooling=pooling, scale=False)
    kinds = [(n, f, bits) for n in (1, 2) for f in (0.0, 1.0) for bits in product((0, 1), repeat=n)]

    def probability(n: int, f: float, bits: tuple[int, ...]) -> float:
        p = 0.5 * (right[n - 1] if f else 1 - right[n - 1])
        return p * float(np.prod([r if bit else 1 - r for bit, r in zip(bits, reduces, strict=False)]))

    total = 0.0
    for pair in product(kinds, repeat=2):
        weight = float(np.prod([probability(*kind) for kind in pair]))
        rows = [np.cumsum([9.0] + [(-1.0 if bit else 1.0) for bit in bits]).tolist() for _, _, bits in pair]
        group = group_of(rows, [f for _, f, _ in pair])
        for (n, _, _), t, a in zip(pair, group.trajectories, token_advantages(group, config), strict=True):
            decision = np.flatnonzero((t.segment_of_token == 1) & t.response_mask)[0]
            total += weight * a[decision] * (0.5 if n == 2 else -0.5)
    return total / 2


POOLINGS = ("pooled", "trajectory_mean", "leave_one_out")


@pytest.mark.parametrize("pooling", POOLINGS)
def test_no_length_bias_where_calls_are_alike_and_useless(pooling: str) -> None:
    assert expected_length_gradient(pooling) == pytest.approx(0.0, abs=1e-12)


def test_position_effect_is_paid_as_if_it_were_quality() -> None:
    """If the second call reduces less often (0.5 against 0.9), every rule pushes against it though it harms nothing.

    No baseline over calls cures that; the position-corrected signal does.
    """
    bias = {p: expected_length_gradient(p, reduces=(0.9, 0.5)) for p in POOLINGS}
    np.testing.assert_allclose([bias[p] for p in POOLINGS], [-0.0146, -0.0156, -0.0187], atol=1e-4)


def test_useful_second_calls_are_learned_fastest_with_leave_one_out() -> None:
    gain = {p: expected_length_gradient(p, right=(0.3, 0.7)) for p in POOLINGS}
    np.testing.assert_allclose([gain[p] for p in POOLINGS], [0.0458, 0.0563, 0.0875], atol=1e-4)

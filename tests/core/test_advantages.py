"""Advantages: hand-computed token values, masks, correctness-first, and the length bias of each pooling rule."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from builders import make_trajectory
from hypothesis import given
from hypothesis import strategies as st

from deltah import Group, RewardConfig, SegmentKind, score, token_advantages
from deltah.core.advantages import BatchCredit, batch_credit, credit_rollouts, pay
from deltah.core.rewards import POOLINGS, REWARDS, normalise
from deltah.core.segments import trajectory_from_spans
from deltah.errors import InvalidValueError

IN_A_GROUP = [name for name, entry in REWARDS.items() if "over_batch" not in entry.options]


RULES = ("pooled", "trajectory_mean", "leave_one_out")


def call_advantages(group: Group, config: RewardConfig) -> list[np.ndarray]:
    """Of each call, before calls of one round are averaged."""
    return POOLINGS[config.pooling].value(pay(group, config).values, config.scale, config.eps)


def segment_advantages(group: Group, config: RewardConfig) -> list[np.ndarray]:
    """Of the sampled tokens of r_0 ... r_R."""
    rows = zip(token_advantages(group, config), group.trajectories, strict=True)
    return [
        np.array([a[t.response_mask & (t.segment_of_token == k)][0] for k in range(len(t.rounds) + 1)]) for a, t in rows
    ]


def trajectory_advantages(group: Group, config: RewardConfig) -> np.ndarray:
    return np.array([per_segment[0] for per_segment in segment_advantages(group, config)])


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


@given(groups, st.sampled_from(IN_A_GROUP), st.booleans())
def test_only_sampled_tokens_carry_an_advantage(group: Group, name: str, first: bool) -> None:
    config = RewardConfig(name=name, correctness_first=first)
    for trajectory, advantages in zip(group.trajectories, token_advantages(group, config), strict=True):
        assert advantages.shape == (len(trajectory),)
        assert np.isfinite(advantages).all()
        assert not advantages[~trajectory.response_mask].any()
        assert not advantages[trajectory.mask([SegmentKind.RESULT, SegmentKind.PROMPT])].any()


def sampled(group: Group, config: RewardConfig) -> list[np.ndarray]:
    tokens = token_advantages(group, config)
    return [a[t.response_mask] for a, t in zip(tokens, group.trajectories, strict=True)]


@given(
    groups,
    st.sampled_from(IN_A_GROUP),
    st.sampled_from(RULES),
    st.booleans(),
    st.sampled_from([0.4, 1.0]),
)
def test_correctness_first_never_reverses_a_sign(
    group: Group, name: str, pooling: str, scale: bool, correct_at: float
) -> None:
    """No token of a correct trajectory gets less than any token of an incorrect one, or than min(0, outcome's)."""
    config = RewardConfig(name=name, pooling=pooling, scale=scale, correctness_first=True, correct_at=correct_at)
    advantages = sampled(group, config)
    plain = np.minimum(normalise(group.outcomes, scale=scale), 0.0)
    correct = group.outcomes >= correct_at
    best_wrong = max((a.max() for a, ok in zip(advantages, correct, strict=True) if not ok), default=-np.inf)
    for a, least, ok in zip(advantages, plain, correct, strict=True):
        if ok:
            assert a.min() >= max(least, best_wrong)


def test_dense_sign_reversal_and_its_cure() -> None:
    """A right answer with a useless call against a nearly right one whose call reduced entropy."""
    group = group_of([[1, 2], [2, 1], [1, 2]], [1.0, 0.9, 0.0])
    # Call rewards 1.0, 1.35, 0: mean 0.7833. Outcomes: mean 0.6333.
    config = RewardConfig(name="dense", scale=False)
    right, nearly, wrong = segment_advantages(group, config)
    np.testing.assert_allclose(
        [right, nearly, wrong], [[0.21667, 0.36667], [0.56667, 0.26667], [-0.78333, -0.63333]], atol=1e-5
    )
    right, nearly, wrong = segment_advantages(group, RewardConfig(name="dense", scale=False, correctness_first=True))
    np.testing.assert_allclose(
        [right, nearly, wrong], [[0.56667, 0.56667], [0.56667, 0.26667], [-0.78333, -0.63333]], atol=1e-5
    )


def test_dense_correctness_first_still_orders_the_calls_of_correct_trajectories() -> None:
    group = group_of([[2, 1, 3], [1]], [1.0, 0.0])
    config = RewardConfig(name="dense", scale=False, correctness_first=True)
    # Call rewards 1.5 and 1.0: +0.25 and -0.25, of which the second is raised to 0; outcomes: +-0.5.
    assert segment_advantages(group, config)[0].tolist() == [0.25, 0.0, 0.5]


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


@pytest.mark.parametrize("pooling", RULES)
def test_a_lone_call_has_no_advantage(pooling: str) -> None:
    group = group_of([[2, 1], [1]], [1.0, 0.0])
    assert call_advantages(group, RewardConfig(name="dense", pooling=pooling))[0].tolist() == [0.0]


UNEQUAL = ([[3, 2, 1, 2], [1, 2]], [1.0, 0.5])
"""Call rewards 1.5, 1.5, 1.0 and 0.5: means 4/3 and 1/2 of trajectories, 11/12 of these."""


@pytest.mark.parametrize(
    ("pooling", "centred"),
    [
        ("pooled", [[3 / 8, 3 / 8, -1 / 8], [-5 / 8]]),
        ("trajectory_mean", [[7 / 12, 7 / 12, 1 / 12], [-5 / 12]]),
        ("leave_one_out", [[1.0, 1.0, 0.5], [-5 / 6]]),
    ],
)
def test_call_advantages_by_hand(pooling: str, centred: list[list[float]]) -> None:
    """Unscaled; then divided by the spread of the pooled calls, or of calls about the mean of trajectory means."""
    group = group_of(*UNEQUAL)
    plain = call_advantages(group, RewardConfig(name="dense", pooling=pooling, scale=False))
    scaled = call_advantages(group, RewardConfig(name="dense", pooling=pooling, eps=0.01))
    # Pooled: std with n - 1. Else: each trajectory's mean square about 11/12, averaged over the two.
    spread = np.std([1.5, 1.5, 1.0, 0.5], ddof=1)
    if pooling != "pooled":
        spread = np.sqrt(((49 / 144 + 49 / 144 + 1 / 144) / 3 + 25 / 144) / 2)
    for i, expected in enumerate(centred):
        np.testing.assert_allclose(plain[i], expected)
        np.testing.assert_allclose(scaled[i], np.array(expected) / (spread + 0.01))


def batch_of(outcomes: list[float], **config: object) -> BatchCredit:
    """Two groups of three in turns; m/n = 1, 0, 1/2 in both."""
    trajectories = [
        make_trajectory([[h] for h in row], id=str(i)) for i, row in enumerate([[2, 1], [1, 2], [1, 2, 1]] * 2)
    ]
    return batch_credit(
        trajectories,
        [score(t) for t in trajectories],
        np.array(outcomes),
        ["a"] * 3 + ["b"] * 3,
        RewardConfig(**config),
    )


def test_a_trajectory_without_an_outcome_is_left_out_and_counted() -> None:
    credit = batch_of([1.0, np.nan, 1.0, 1.0, 1.0, 1.0])
    np.testing.assert_array_equal(credit.totals, [1.0, np.nan, 0.5, 1.0, 0.0, 0.5])
    assert not credit.tokens[1].any()
    # The two that are left make the group: 1 and 1/2 about 3/4.
    assert credit.tokens[0].max() == pytest.approx(0.25 / (np.std([1.0, 0.5], ddof=1) + 1e-4))
    assert credit.tokens[2].min() == pytest.approx(-credit.tokens[0].max())
    assert credit.tokens[3].max() == pytest.approx(0.5 / (0.5 + 1e-4))
    assert (credit.n_dropped, credit.dropped_rate) == (1, 1 / 6)


def test_a_trajectory_alone_with_an_outcome_has_no_advantage_and_is_counted() -> None:
    credit = batch_of([np.nan, np.nan, 0.75, 1.0, 1.0, 1.0])
    np.testing.assert_array_equal(credit.totals, [np.nan, np.nan, 0.75, 1.0, 0.0, 0.5])
    assert not any(tokens.any() for tokens in credit.tokens[:3])
    assert (credit.n_dropped, credit.dropped_rate) == (3, 0.5)
    assert batch_of([1.0] * 6).n_dropped == 0
    assert np.isnan(batch_credit([], [], np.zeros(0), [], RewardConfig()).dropped_rate)


def test_the_shuffled_control_is_shuffled_inside_the_batch() -> None:
    """One group of twenty right answers of one call, every second reduced: the reward of each is its verdict."""
    rows = [make_trajectory([[1.0], [0.5 if i % 2 else 1.5]], id=str(i)) for i in range(20)]
    batch = (rows, [score(t) for t in rows], np.ones(20), ["a"] * 20)
    config, measured = RewardConfig(name="shuffled"), [float(i % 2) for i in range(20)]
    drawn = [batch_credit(*batch, config, rng=np.random.default_rng(seed)).totals.tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(sum(row) == 10 for row in drawn)
    assert measured not in drawn
    with pytest.raises(InvalidValueError, match=r"'shuffled' changes the signals of the batch at random; give rng="):
        batch_credit(*batch, config)


def test_a_batch_says_whether_its_advantages_differ_within_a_trajectory() -> None:
    assert not batch_of([1.0] * 6).per_token
    assert batch_of([1.0] * 6, name="dense").per_token
    assert batch_of([1.0] * 6, correctness_first=True).per_token


SPANS = (
    [("prompt", 4), ("reasoning", 1), ("call", 2), ("control", 1), ("result", 3), ("reasoning", 1)],
    [("prompt", 4), ("reasoning", 1), ("call", 1), ("call", 1), ("result", 2), ("reasoning", 2), ("call", 2)],
)
"""One call; two parallel ones, and a third that nothing followed."""
ENTROPIES = ([0] * 4 + [2, 9, 9, 9, 0, 0, 0, 1], [0] * 4 + [1, 9, 9, 0, 0, 2, 4, 9, 9])


def test_spans_make_a_trajectory() -> None:
    one, two = (trajectory_from_spans(s, e, outcome=1.0) for s, e in zip(SPANS, ENTROPIES, strict=True))
    assert [len(r.calls) for r in two.rounds] == [2, 1]
    assert [c.status.value for c in two.calls] == ["ok", "ok", "unanswered"]
    assert [s.turn for s in two.segments] == [0, 0, 0, 0, 0, 1, 1]
    assert score(one).segment_entropy.tolist() == [2.0, 1.0]
    assert score(two).segment_entropy[:2].tolist() == [1.0, 3.0]
    assert one.outcome == 1.0
    with pytest.raises(InvalidValueError, match=r"the spans have 12 tokens, the entropies shape \(11,\)"):
        trajectory_from_spans(SPANS[0], ENTROPIES[0][1:])
    with pytest.raises(InvalidValueError, match="unknown segment kind 'tool'; choose one of: prompt, reasoning"):
        trajectory_from_spans([("tool", 1)], [0.0])


def test_a_loop_of_ones_own_gets_the_advantages_of_its_tokens() -> None:
    """Dense, unscaled: call rewards 1.5 of the first, 1 of the three others, mean 1.125; both answers are right."""
    credit = credit_rollouts(SPANS, ENTROPIES, [1.0, 1.0], ["q", "q"], RewardConfig("dense", scale=False))
    assert credit.tokens[0].tolist() == [0] * 4 + [0.375] * 4 + [0] * 4
    assert credit.tokens[1].tolist() == [0] * 4 + [-0.125] * 3 + [0] * 2 + [-0.125] * 4
    assert credit.totals.tolist() == [1.0, 1.0]
    named = credit_rollouts(SPANS, ENTROPIES, [1.0, 1.0], ["q", "q"], "sparse", signal="entropy_before")
    assert named.totals.tolist() == [1.0, pytest.approx(2 / 3)]


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


@pytest.mark.parametrize("pooling", RULES)
def test_no_length_bias_where_calls_are_alike_and_useless(pooling: str) -> None:
    assert expected_length_gradient(pooling) == pytest.approx(0.0, abs=1e-12)


def test_position_effect_is_paid_as_if_it_were_quality() -> None:
    """If the second call reduces less often (0.5 against 0.9), every rule pushes against it though it harms nothing.

    No baseline over calls cures that; the position-corrected signal does.
    """
    bias = {p: expected_length_gradient(p, reduces=(0.9, 0.5)) for p in RULES}
    np.testing.assert_allclose([bias[p] for p in RULES], [-0.0146, -0.0156, -0.0187], atol=1e-4)


def test_useful_second_calls_are_learned_fastest_with_leave_one_out() -> None:
    gain = {p: expected_length_gradient(p, right=(0.3, 0.7)) for p in RULES}
    np.testing.assert_allclose([gain[p] for p in RULES], [0.0458, 0.0563, 0.0875], atol=1e-4)


def test_a_batch_of_unequal_lengths_is_refused() -> None:
    group = group_of([[2, 1, 3], [1, 2]], [1.0, 0.0])
    trajectories, signals, n = list(group.trajectories), list(group.signals), len(group)
    lists = batch_credit(trajectories, signals, group.outcomes.tolist(), ["g"] * n)
    arrays = batch_credit(trajectories, signals, group.outcomes, ["g"] * n)
    np.testing.assert_array_equal(lists.totals, arrays.totals)
    for outcomes, groups in (
        ([1.0] * (n + 2), ["g"] * n),
        ([1.0], ["g"] * n),
        ([1.0] * n, ["g"]),
        ([1.0] * n, [1] * 9),
    ):
        with pytest.raises(InvalidValueError, match=f"got {n} trajectories, {n} signals, .*; give one for each"):
            batch_credit(trajectories, signals, outcomes, groups)

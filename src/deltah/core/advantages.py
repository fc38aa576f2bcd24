r"""Group-relative advantages, down to tokens.

Scalar rewards: $A_i = (r_i - \bar r) / (\mathrm{std} + \epsilon)$ on every sampled token of trajectory i (GRPO).
Dense rewards: $A_{i,k}$ from the group's calls, put on the sampled tokens of the segment that *issued* call k; calls of
one round share their segment and its mean advantage; the final segment, and every token of a trajectory without
calls, get the group's outcome advantage. Tokens that were not sampled get 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from deltah.core.align import scatter
from deltah.core.pooling import POOLINGS, normalise
from deltah.core.rewards import (
    CallRewards,
    RewardConfig,
    Rewards,
    SegmentAdvantages,
    TrajectoryRewards,
    check_one_group,
    pay,
    reward_config,
    totals_of,
)
from deltah.core.segments import Span, trajectory_from_spans
from deltah.core.signal_types import Group, Signal
from deltah.core.signals import SignalConfig, score
from deltah.core.types import FloatArray, Trajectory
from deltah.errors import InvalidValueError


def outcome_advantages(group: Group, config: RewardConfig) -> FloatArray:
    """(G,) advantage of the plain outcome."""
    return normalise(group.outcomes, scale=config.scale, eps=config.eps)


def trajectory_advantages(group: Group, paid: TrajectoryRewards, config: RewardConfig) -> FloatArray:
    """(G,) advantage of each trajectory's reward, correctness-first where the config asks for it."""
    totals = np.asarray(paid.values, dtype=np.float64)
    if not config.correctness_first:
        return normalise(totals, scale=config.scale, eps=config.eps)
    correct = group.outcomes >= config.correct_at
    if correct.any() and not correct.all():
        totals = np.where(correct, np.maximum(totals, totals[~correct].max()), totals)
    advantages = normalise(totals, scale=config.scale, eps=config.eps)
    floored = _floor_correct(list(advantages[:, None]), correct, outcome_advantages(group, config))
    return np.concatenate(floored)


def _floor_correct(advantages: Sequence[FloatArray], correct: np.ndarray, outcome: FloatArray) -> list[FloatArray]:
    """Raise what a correct trajectory gets where it lies below any of an incorrect one, or below min(0, outcome's)."""
    best_wrong = max((a.max() for a, ok in zip(advantages, correct, strict=True) if not ok), default=-np.inf)
    return [
        np.maximum(a, max(min(own, 0.0), best_wrong)) if ok else a
        for a, ok, own in zip(advantages, correct, outcome.tolist(), strict=True)
    ]


def call_advantages(paid: CallRewards, config: RewardConfig) -> list[FloatArray]:
    """Advantage of every call, before correctness comes first: G arrays (C_i,)."""
    rewards = [np.asarray(values, dtype=np.float64) for values in paid.values]
    return POOLINGS.resolve(config.pooling).value(rewards, config.scale, config.eps)


def segment_advantages(group: Group, paid: CallRewards | SegmentAdvantages, config: RewardConfig) -> list[FloatArray]:
    """Advantage of every segment r_0 ... r_R: G arrays (R_i + 1,).

    Where calls are paid, segment k - 1 gets the mean over the calls of the round k it issued, the last one the
    outcome's advantage. With `correctness_first` no segment of a correct trajectory stays below one of an incorrect
    trajectory, nor below min(0, its own outcome-only advantage).
    """
    outcome = outcome_advantages(group, config)
    if isinstance(paid, SegmentAdvantages):
        advantages = [np.asarray(values, dtype=np.float64) for values in paid.values]
    else:
        advantages = [
            np.array([*(per_call[list(r.calls)].mean() for r in trajectory.rounds), final])
            for trajectory, per_call, final in zip(
                group.trajectories, call_advantages(paid, config), outcome, strict=True
            )
        ]
    if not config.correctness_first:
        return advantages
    return _floor_correct(advantages, group.outcomes >= config.correct_at, outcome)


def token_advantages(group: Group, config: RewardConfig | str | None = None) -> list[FloatArray]:
    """Advantage of every token of every trajectory in a group.

    Args:
        group: G trajectories of one prompt with signals and outcomes.
        config: Which reward and how it is normalised, in full or by name; sparse when not given.

    Returns:
        G arrays (T_i,), 0 on tokens that were not sampled.

    Raises:
        InvalidValueError: if the reward needs the whole batch first (`batch_credit`).
    """
    config = reward_config(config)
    check_one_group(config)
    return _on_tokens(group, pay(group, config), config)


def _on_tokens(group: Group, paid: Rewards, config: RewardConfig) -> list[FloatArray]:
    """G arrays (T_i,)."""
    if isinstance(paid, TrajectoryRewards):
        values = trajectory_advantages(group, paid, config)
        return [t.response_mask * np.float64(a) for a, t in zip(values, group.trajectories, strict=True)]
    return [
        scatter(per_segment, trajectory.segment_of_token, trajectory.response_mask)
        for trajectory, per_segment in zip(group.trajectories, segment_advantages(group, paid, config), strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCredit:
    """Rewards and advantages of a batch that holds several groups, in the batch's order."""

    totals: FloatArray
    """(B,) scalar reward; NaN for a trajectory without an outcome."""
    tokens: tuple[FloatArray, ...]
    """B arrays (T_i,); all 0 where no advantage exists."""
    n_dropped: int
    """Trajectories without an advantage: no outcome, or alone with one in their group."""
    per_token: bool
    """Whether advantages differ within a trajectory, or from what `totals` give when normalised in their group."""

    @property
    def dropped_rate(self) -> float:
        """Their share of the batch, for logging as `deltah.core.metrics.DROPPED`; NaN for an empty batch."""
        return self.n_dropped / len(self.tokens) if self.tokens else float("nan")


def batch_credit(
    trajectories: Sequence[Trajectory],
    signals: Sequence[Signal],
    outcomes: FloatArray,
    groups: Sequence[Hashable],
    config: RewardConfig | str | None = None,
    *,
    rng: np.random.Generator | None = None,
) -> BatchCredit:
    """Reward every trajectory of a batch and spread its advantage over its tokens, group by group.

    Args:
        trajectories: B of them.
        signals: B, as measured: what a reward does over the batch, such as the shuffled control, happens here.
        outcomes: (B,) in [0, 1]; NaN where the grader gave none.
        groups: (B,) which group each belongs to.
        config: Which reward, in full or by name; sparse with the method's defaults when not given.
        rng: Source of what a reward draws over the batch; another one for each batch.

    Returns:
        A `BatchCredit`; a group left with one graded trajectory has no advantage and is counted.

    Raises:
        InvalidValueError: if the reward needs `rng` and none is given.
    """
    config = reward_config(config)
    if config.over_batch is not None:
        if rng is None:
            raise InvalidValueError(
                f"the reward {config.name!r} changes the signals of the batch at random; give "
                "rng=numpy.random.default_rng([seed, step])"
            )
        signals = config.over_batch(signals, rng)
    totals = np.full(len(trajectories), np.nan)
    tokens = [np.zeros(len(trajectory)) for trajectory in trajectories]
    dropped, kinds = 0, set()
    members: dict[Hashable, list[int]] = {}
    for i, key in enumerate(groups):
        members.setdefault(key, []).append(i)
    for rows in members.values():
        graded = [i for i in rows if np.isfinite(outcomes[i])]
        if len(graded) < 2:
            dropped += len(rows)
            for i in graded:
                totals[i] = outcomes[i]
            continue
        dropped += len(rows) - len(graded)
        group = Group(
            trajectories=[trajectories[i] for i in graded],
            signals=[signals[i] for i in graded],
            outcomes=outcomes[graded],
        )
        paid = pay(group, config)
        kinds.add(type(paid))
        totals[graded] = totals_of(group, paid)
        for i, advantages in zip(graded, _on_tokens(group, paid, config), strict=True):
            tokens[i] = advantages
    per_token = config.correctness_first or kinds != {TrajectoryRewards}
    return BatchCredit(totals=totals, tokens=tuple(tokens), n_dropped=dropped, per_token=per_token)


def credit_rollouts(
    spans: Sequence[Iterable[Span]],
    entropies: Sequence[ArrayLike],
    outcomes: Sequence[float],
    groups: Sequence[Hashable],
    reward: RewardConfig | str | None = None,
    *,
    signal: SignalConfig | str | None = None,
    rng: np.random.Generator | None = None,
) -> BatchCredit:
    """Per-token advantages for a training loop of one's own.

    Args:
        spans: B rollouts, each as (kind, tokens) in order; see `trajectory_from_spans`.
        entropies: B arrays (T_i,) nats of the distribution each token was drawn from; see `entropy_from_logits`.
        outcomes: (B,) the task's score in [0, 1]; NaN where there is none.
        groups: (B,) rollouts of one prompt share a value.
        reward: Which reward, in full or by name; sparse when not given.
        signal: How calls are judged, in full or by name; ΔH when not given.
        rng: Source of what a reward draws over the batch.

    Returns:
        A `BatchCredit`, whose `tokens` are B arrays (T_i,) of advantages, 0 on tokens that were not sampled.
    """
    trajectories = [
        trajectory_from_spans(own, entropy, id=str(i))
        for i, (own, entropy) in enumerate(zip(spans, entropies, strict=True))
    ]
    signals = [score(trajectory, signal) for trajectory in trajectories]
    return batch_credit(trajectories, signals, np.asarray(outcomes, dtype=np.float64), groups, reward, rng=rng)

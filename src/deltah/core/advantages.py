r"""Group-relative advantages, down to tokens.

Scalar rewards: $A_i = (r_i - \bar r) / (\mathrm{std} + \epsilon)$ on every sampled token of trajectory i (GRPO).
Dense rewards: $A_{i,k}$ from the group's calls, put on the sampled tokens of the segment that *issued* call k; calls of
one round share their segment and its mean advantage; the final segment, and every token of a trajectory without
calls, get the group's outcome advantage. Tokens that were not sampled get 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from deltah.core.align import scatter
from deltah.core.rewards import Pooling, Reward, RewardConfig, RewardName, group_rewards
from deltah.core.signal_types import Group, Signal
from deltah.core.types import FloatArray, Trajectory


def normalise(values: FloatArray, *, scale: bool = True, eps: float = 1e-4) -> FloatArray:
    """(r - mean) / (std + eps) over one group, std with n - 1; a group of one gets 0.

    Args:
        values: (N,) rewards.
        scale: False leaves out the division.
        eps: Added to the standard deviation.
    """
    if len(values) < 2:
        return np.zeros(len(values))
    centred = values - values.mean()
    return np.asarray(centred / (values.std(ddof=1) + eps)) if scale else centred


def outcome_advantages(group: Group, config: RewardConfig) -> FloatArray:
    """(G,) advantage of the plain outcome."""
    return normalise(group.outcomes, scale=config.scale, eps=config.eps)


def trajectory_advantages(group: Group, config: RewardConfig) -> FloatArray:
    """(G,) advantage of each trajectory's total reward, correctness-first where the config asks for it."""
    totals = np.array([reward.total for reward in group_rewards(group, config)])
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


def call_advantages(group: Group, config: RewardConfig) -> list[FloatArray]:
    """Advantage of every call in the dense form, before correctness comes first: G arrays (C_i,).

    Args:
        group: G trajectories.
        config: `pooling` chooses the baseline, `centred` and `alpha` the reward.
    """
    return _normalise_calls([_process(reward) for reward in group_rewards(group, config)], config)


def segment_advantages(group: Group, config: RewardConfig) -> list[FloatArray]:
    """Advantage of every segment r_0 ... r_R in the dense form: G arrays (R_i + 1,).

    Segment k - 1 gets the mean over the calls of the round k it issued, the last one the outcome's advantage. With
    `correctness_first` no segment of a correct trajectory stays below one of an incorrect trajectory, nor below
    min(0, its own outcome-only advantage).
    """
    outcome = outcome_advantages(group, config)
    advantages = [
        np.array([*(per_call[list(r.calls)].mean() for r in trajectory.rounds), final])
        for trajectory, per_call, final in zip(group.trajectories, call_advantages(group, config), outcome, strict=True)
    ]
    if not config.correctness_first:
        return advantages
    return _floor_correct(advantages, group.outcomes >= config.correct_at, outcome)


def _process(reward: Reward) -> FloatArray:
    return np.zeros(0) if reward.process is None else reward.process


def _normalise_calls(processes: Sequence[FloatArray], config: RewardConfig) -> list[FloatArray]:
    if config.pooling is Pooling.POOLED:
        flat = normalise(np.concatenate(processes), scale=config.scale, eps=config.eps)
        return np.split(flat, np.cumsum([len(p) for p in processes])[:-1])
    means = {i: float(p.mean()) for i, p in enumerate(processes) if len(p)}
    if not means:
        return [np.zeros(0) for _ in processes]
    centre = float(np.mean(list(means.values())))
    centred = [p - _baseline(i, means, centre, config.pooling) for i, p in enumerate(processes)]
    if not config.scale:
        return centred
    spread = np.sqrt(np.mean([float(((processes[i] - centre) ** 2).mean()) for i in means]))
    return [c / (spread + config.eps) for c in centred]


def _baseline(index: int, means: dict[int, float], centre: float, pooling: Pooling) -> float:
    others = [mean for i, mean in means.items() if i != index]
    if pooling is Pooling.TRAJECTORY_MEAN or not others:
        return centre
    return float(np.mean(others))


def token_advantages(group: Group, config: RewardConfig | None = None) -> list[FloatArray]:
    """Advantage of every token of every trajectory in a group.

    Args:
        group: G trajectories of one prompt with signals and outcomes.
        config: Which reward and how it is normalised; sparse with the method's defaults when not given.

    Returns:
        G arrays (T_i,), 0 on tokens that were not sampled.
    """
    config = config or RewardConfig()
    if config.name is not RewardName.DENSE:
        values = trajectory_advantages(group, config)
        return [t.response_mask * np.float64(a) for a, t in zip(values, group.trajectories, strict=True)]
    return [
        scatter(per_segment, trajectory.segment_of_token, trajectory.response_mask)
        for trajectory, per_segment in zip(group.trajectories, segment_advantages(group, config), strict=True)
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

    @property
    def dropped_rate(self) -> float:
        """Their share of the batch, for logging as `deltah.core.metrics.DROPPED`; NaN for an empty batch."""
        return self.n_dropped / len(self.tokens) if self.tokens else float("nan")


def batch_credit(
    trajectories: Sequence[Trajectory],
    signals: Sequence[Signal],
    outcomes: FloatArray,
    groups: Sequence[Hashable],
    config: RewardConfig,
) -> BatchCredit:
    """Reward every trajectory of a batch and spread its advantage over its tokens, group by group.

    Args:
        trajectories: B of them.
        signals: B, already shuffled over the batch under the shuffled control.
        outcomes: (B,) in [0, 1]; NaN where the grader gave none.
        groups: (B,) which group each belongs to.
        config: Which reward.

    Returns:
        A `BatchCredit`; a group left with one graded trajectory has no advantage and is counted.
    """
    totals = np.full(len(trajectories), np.nan)
    tokens = [np.zeros(len(trajectory)) for trajectory in trajectories]
    dropped = 0
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
        totals[graded] = [reward.total for reward in group_rewards(group, config)]
        for i, advantages in zip(graded, token_advantages(group, config), strict=True):
            tokens[i] = advantages
    return BatchCredit(totals=totals, tokens=tuple(tokens), n_dropped=dropped)

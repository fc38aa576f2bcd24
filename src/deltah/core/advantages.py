r"""Group-relative advantages, down to tokens.

Scalar rewards: $A_i = (r_i - \bar r) / (\mathrm{std} + \epsilon)$ on every sampled token of trajectory i (GRPO).
Dense rewards: $A_{i,k}$ from the group's calls, put on the sampled tokens of the segment that *issued* call k; calls of
one round share their segment and its mean advantage; the final segment, and every token of a trajectory without
calls, get the group's outcome advantage. Tokens that were not sampled get 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence, Sized
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from deltah.core.align import scatter
from deltah.core.rewards import (
    POOLINGS,
    CallRewards,
    Group,
    RewardConfig,
    Rewards,
    SegmentAdvantages,
    TrajectoryRewards,
    normalise,
    reward_config,
)
from deltah.core.segments import Span, trajectory_from_spans
from deltah.core.signals import Signal, SignalConfig, score
from deltah.core.types import FloatArray, Trajectory
from deltah.errors import InvalidValueError


def pay(group: Group, config: RewardConfig) -> Rewards:
    """What a reward gives a group; refuses values of another type or shape than it promises."""
    paid = config.entry.value(group, **config.arguments)
    shapes: dict[type, list[tuple[int]]] = {
        TrajectoryRewards: [(len(group),)],
        CallRewards: [(s.n_calls,) for s in group.signals],
        SegmentAdvantages: [(s.n_rounds + 1,) for s in group.signals],
    }
    expected = shapes.get(type(paid))
    if expected is None:
        raise InvalidValueError(
            f"the reward {config.name!r} returned a {type(paid).__name__}; expected TrajectoryRewards, CallRewards or "
            "SegmentAdvantages"
        )
    values = [paid.values] if isinstance(paid, TrajectoryRewards) else paid.values
    if [np.shape(v) for v in values] != expected or not all(np.isfinite(v).all() for v in values):
        raise InvalidValueError(
            f"the reward {config.name!r} returned {type(paid).__name__} of shapes {[np.shape(v) for v in values]}; "
            f"expected finite numbers of shapes {expected}"
        )
    return paid


def _pay_alone(group: Group, config: RewardConfig) -> Rewards:
    """As `pay`, for a group without its batch; refuses rewards that change the signals of the whole batch first."""
    if config.over_batch is not None:
        raise InvalidValueError(
            f"the reward {config.name!r} changes the signals of a whole batch before it rewards a group; call "
            "deltah.batch_credit(trajectories, signals, outcomes, groups, config, rng=numpy.random.default_rng(seed))"
        )
    return pay(group, config)


def _totals(group: Group, paid: Rewards) -> FloatArray:
    """(G,) scalar that a trainer sees: the reward of a trajectory, or the outcome where smaller parts are paid."""
    return np.array(paid.values if isinstance(paid, TrajectoryRewards) else group.outcomes, dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """Reward of one trajectory."""

    total: float
    """Scalar that a trainer sees; the plain outcome where calls or segments carry their own."""
    process: FloatArray | None
    """(C,) reward of each call; None where none is paid by itself."""


def group_rewards(group: Group, config: RewardConfig | str | None = None) -> list[Reward]:
    """Rewards of the G trajectories of a group, in its order.

    Args:
        group: G trajectories with signals and outcomes.
        config: Which reward, in full or by name; sparse when not given.

    Raises:
        InvalidValueError: if the reward needs the whole batch first.
    """
    paid = _pay_alone(group, reward_config(config))
    calls = paid.values if isinstance(paid, CallRewards) else [None] * len(group)
    totals = _totals(group, paid).tolist()
    return [Reward(total=total, process=process) for total, process in zip(totals, calls, strict=True)]


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
    return _on_tokens(group, _pay_alone(group, config), config)


def _on_tokens(group: Group, paid: Rewards, config: RewardConfig) -> list[FloatArray]:
    """G arrays (T_i,) of advantages, made per segment r_0 ... r_R and put on its sampled tokens."""
    outcomes = normalise(group.outcomes, scale=config.scale, eps=config.eps)
    correct = group.outcomes >= config.correct_at
    advantages: list[FloatArray]
    if isinstance(paid, TrajectoryRewards):
        totals = np.asarray(paid.values, dtype=np.float64)
        if config.correctness_first and correct.any() and not correct.all():
            totals = np.where(correct, np.maximum(totals, totals[~correct].max()), totals)
        own = zip(group.trajectories, normalise(totals, scale=config.scale, eps=config.eps), strict=True)
        advantages = [np.full(len(trajectory.rounds) + 1, advantage) for trajectory, advantage in own]
    elif isinstance(paid, CallRewards):
        rewards = [np.asarray(values, dtype=np.float64) for values in paid.values]
        calls = POOLINGS.resolve(config.pooling).value(rewards, config.scale, config.eps)
        advantages = [
            np.array([*(per_call[list(r.calls)].mean() for r in trajectory.rounds), final])
            for trajectory, per_call, final in zip(group.trajectories, calls, outcomes, strict=True)
        ]
    else:
        advantages = [np.asarray(values, dtype=np.float64) for values in paid.values]
    if config.correctness_first:
        best_wrong = max((a.max() for a, ok in zip(advantages, correct, strict=True) if not ok), default=-np.inf)
        floors = np.where(correct, np.maximum(np.minimum(outcomes, 0.0), best_wrong), -np.inf)
        advantages = [np.maximum(a, floor) for a, floor in zip(advantages, floors, strict=True)]
    rows = zip(advantages, group.trajectories, strict=True)
    return [scatter(own, t.segment_of_token, t.response_mask) for own, t in rows]


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
    outcomes: ArrayLike,
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
        InvalidValueError: if the lengths differ, or the reward needs `rng` and none is given.
    """
    config, outcomes = reward_config(config), np.asarray(outcomes, dtype=np.float64)
    batch: dict[str, Sized] = {"trajectories": trajectories, "signals": signals, "outcomes": outcomes, "groups": groups}
    lengths = {what: len(values) for what, values in batch.items()}
    if len(set(lengths.values())) > 1:
        raise InvalidValueError(f"got {', '.join(f'{n} {what}' for what, n in lengths.items())}; give one for each")
    if config.over_batch is not None:
        if rng is None:
            raise InvalidValueError(
                f"the reward {config.name!r} changes the signals of the batch at random; give "
                "rng=numpy.random.default_rng([seed, step])"
            )
        signals = config.over_batch(signals, rng)
    totals = np.where(np.isfinite(outcomes), outcomes, np.nan)
    tokens = [np.zeros(len(trajectory)) for trajectory in trajectories]
    dropped, kinds = len(trajectories), set()
    members: dict[Hashable, list[int]] = {}
    for i, key in enumerate(groups):
        members.setdefault(key, []).append(i)
    for rows in members.values():
        graded = [i for i in rows if np.isfinite(outcomes[i])]
        if len(graded) < 2:
            continue
        dropped -= len(graded)
        group = Group(
            trajectories=[trajectories[i] for i in graded],
            signals=[signals[i] for i in graded],
            outcomes=outcomes[graded],
        )
        paid = pay(group, config)
        kinds.add(type(paid))
        totals[graded] = _totals(group, paid)
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
    """Per-token advantages for your own training loop.

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
    return batch_credit(trajectories, signals, outcomes, groups, reward, rng=rng)

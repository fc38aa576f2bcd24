r"""Rewards made of an outcome and a signal, the baselines they are compared with, and their control.

With F1 the task's score in [0, 1], n all calls of a trajectory and m those with $I_k = 1$:

* sparse: $r = F1 \cdot m / n$, and $F1 \cdot e_0$ at n = 0 (`no_call_efficiency`, ours: the sources do not say);
* dense: $r_k = F1 \cdot (1 + \alpha I_k)$ for every call k; centred: $F1 \cdot (1 + \alpha (I_k - \bar I))$;
* outcome: $r = F1$;
* penalty: $r = F1 - c \cdot n$;
* OTC (arXiv 2504.14870): $r = F1 \cdot r_{tool}$, a bump over n that is 1 at the fewest calls $n^*$ of any correct
  trajectory of the group;
* shuffled: sparse after the verdicts were permuted among the calls of one round index, across the batch. It keeps the
  form m/n and the position effect and destroys the entropy content: what sparse gains over it, entropy bought.

Undefined and undecided calls count in n and not in m.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from deltah.core.options import check_number, choice
from deltah.core.signal_types import Group, Signal
from deltah.core.types import FloatArray
from deltah.errors import InvalidValueError


class RewardName(StrEnum):
    """Arms of an experiment."""

    OUTCOME = "outcome"
    SPARSE = "sparse"
    DENSE = "dense"
    PENALTY = "penalty"
    OTC = "otc"
    SHUFFLED = "shuffled"


REWARDS: tuple[str, ...] = tuple(name.value for name in RewardName)


class Pooling(StrEnum):
    """Baseline of a call's advantage in the dense form."""

    POOLED = "pooled"
    """Mean over all calls of the group: trajectories with many calls weigh more."""
    TRAJECTORY_MEAN = "trajectory_mean"
    """Mean over trajectories of their mean call reward: every trajectory weighs the same."""
    LEAVE_ONE_OUT = "leave_one_out"
    """As `trajectory_mean`, without the trajectory itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """Which reward, and every decision its sources leave open.

    Raises:
        InvalidValueError: if a field is out of range, or the name does not exist.
    """

    name: RewardName = RewardName.SPARSE
    alpha: float = 0.5
    """Weight of a reduced call in the dense form."""
    centred: bool = False
    """Dense form with I_k less the group's reduction rate."""
    no_call_efficiency: float = 1.0
    """Stands for m / n where n = 0."""
    call_penalty: float = 0.1
    """Cost of one call under `penalty`, in units of the outcome."""
    otc_smoothing: float = 4.0
    """c of the OTC cosine, used where the best correct trajectory makes no call."""
    correctness_first: bool = False
    """Efficiency may order correct trajectories among themselves, but no token of one gets less than any token of an
    incorrect one, nor less than the smaller of 0 and its outcome-only advantage."""
    correct_at: float = 1.0
    """Outcome from which a trajectory counts as correct."""
    pooling: Pooling = Pooling.POOLED
    scale: bool = True
    """Divide advantages by the group's standard deviation (n - 1 in the denominator)."""
    eps: float = 1e-4
    """Added to that standard deviation; TRL's value."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", choice(RewardName, self.name, "reward"))
        object.__setattr__(self, "pooling", choice(Pooling, self.pooling, "pooling"))
        for field, low, high in _RANGES:
            check_number(field, getattr(self, field), low, high)

    @property
    def needs_token_advantages(self) -> bool:
        """Whether a trainer that normalises scalar rewards itself would lose something."""
        return self.name is RewardName.DENSE or self.correctness_first


_RANGES = (
    ("alpha", 0.0, 100.0),
    ("no_call_efficiency", 0.0, 1.0),
    ("call_penalty", 0.0, 1.0),
    ("otc_smoothing", 1e-6, 1e6),
    ("correct_at", 1e-9, 1.0),
    ("eps", 0.0, 1.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """Reward of one trajectory."""

    total: float
    """Scalar that a trainer sees; the plain outcome in the dense form, whose calls carry their own."""
    process: FloatArray | None
    """(C,) reward of each call in the dense form; None in all others."""


def sparse_reward(signal: Signal, outcome: float, *, no_call_efficiency: float = 1.0) -> float:
    """F1 * m / n, the method's sparse outcome reward.

    Args:
        signal: Verdicts on the calls.
        outcome: F1 in [0, 1].
        no_call_efficiency: Stands for m / n where n = 0.
    """
    _check_outcome(outcome)
    efficiency = signal.n_reduced / signal.n_calls if signal.n_calls else no_call_efficiency
    return outcome * efficiency


def dense_reward(signal: Signal, outcome: float, alpha: float = 0.5, *, reduction_rate: float = 0.0) -> FloatArray:
    """F1 * (1 + alpha * (I_k - reduction_rate)) for every call, the method's dense process reward.

    Args:
        signal: Verdicts on C calls.
        outcome: F1 in [0, 1].
        alpha: Weight of a reduced call.
        reduction_rate: 0 in the method; the group's mean I in the centred variant.

    Returns:
        (C,)
    """
    _check_outcome(outcome)
    return outcome * (1.0 + alpha * (signal.call_reduced.astype(np.float64) - reduction_rate))


def outcome_reward(signal: Signal, outcome: float) -> float:
    """F1: plain GRPO."""
    del signal
    _check_outcome(outcome)
    return outcome


def penalty_reward(signal: Signal, outcome: float, *, call_penalty: float = 0.1) -> float:
    """F1 - c * n: the control that charges for calls and knows no entropy."""
    _check_outcome(outcome)
    return outcome - call_penalty * signal.n_calls


def otc_reward(signal: Signal, outcome: float, *, fewest_calls: int | None, smoothing: float = 4.0) -> float:
    r"""F1 * r_tool of OTC-GRPO (arXiv 2504.14870) with its outer weight at 1.

    With n calls here and $n^*$ the fewest of a correct trajectory of the group: 1 if both are 0;
    $\cos(\pi n / (2 n + c))$ if $n^* = 0$; $\sin(\pi f / (2 n^*))$ with $f = 2 n n^* / (n + n^*)$ otherwise, which is 1
    at $n = n^*$.

    The form was checked against public accounts of the paper and an independent implementation of it, not against its
    text. The default of c is ours: the paper's value is not known to us. So is the choice where no trajectory is
    correct; with an outcome of 0 or 1, as in the paper, it cannot matter.

    Args:
        signal: Gives n.
        outcome: F1 in [0, 1].
        fewest_calls: $n^*$; None where no trajectory of the group is correct (then n counts as its own best).
        smoothing: c.
    """
    _check_outcome(outcome)
    n = signal.n_calls
    best = n if fewest_calls is None else fewest_calls
    if best == 0:
        return outcome * (float(np.cos(np.pi * n / (2 * n + smoothing))) if n else 1.0)
    return outcome * float(np.sin(np.pi * n / (n + best)))


def shuffle_verdicts(signals: Sequence[Signal], rng: np.random.Generator) -> list[Signal]:
    """Permute the verdicts among the rounds of one index, across the batch: the shuffled-sign control.

    A round of which no call was answered has no verdict to give or take and stays undefined. With one call a round, m
    of the batch is kept.

    Args:
        signals: A batch, best large: within one group of like verdicts a shuffle changes nothing.
        rng: Source of the permutation.

    Returns:
        Signals of the same shape whose `value`, bounds and verdicts moved together.
    """
    origin = [[i] * s.n_rounds for i, s in enumerate(signals)]
    for k in range(max((s.n_rounds for s in signals), default=0)):
        holders = [i for i, s in enumerate(signals) if s.n_rounds > k and _has_answer(s, k)]
        for target, source in zip(holders, rng.permutation(holders), strict=True):
            origin[target][k] = int(source)
    return [
        replace(
            signal,
            value=np.array([signals[i].value[k] for k, i in enumerate(sources)], dtype=np.float64),
            lower=np.array([signals[i].lower[k] for k, i in enumerate(sources)], dtype=np.float64),
            upper=np.array([signals[i].upper[k] for k, i in enumerate(sources)], dtype=np.float64),
            verdicts=tuple(signals[i].verdicts[k] for k, i in enumerate(sources)),
        )
        for signal, sources in zip(signals, origin, strict=True)
    ]


def _has_answer(signal: Signal, k: int) -> bool:
    return signal.answered is None or bool(signal.answered[signal.round_of_call == k].any())


def group_rewards(group: Group, config: RewardConfig) -> list[Reward]:
    """Reward every trajectory of a group.

    Under `shuffled` the group's signals must have been shuffled over the whole batch before (`shuffle_verdicts`); a
    shuffle inside one group would keep too much.

    Args:
        group: G trajectories with signals and outcomes.
        config: Which reward.

    Returns:
        G rewards in the group's order.
    """
    pairs = [(s, float(f)) for s, f in zip(group.signals, group.outcomes, strict=True)]
    if config.name is RewardName.DENSE:
        rate = _reduction_rate(group) if config.centred else 0.0
        return [Reward(total=f, process=dense_reward(s, f, config.alpha, reduction_rate=rate)) for s, f in pairs]
    if config.name is RewardName.OTC:
        correct = [s.n_calls for s, f in pairs if f >= config.correct_at]
        fewest = min(correct, default=None)
        totals = [otc_reward(s, f, fewest_calls=fewest, smoothing=config.otc_smoothing) for s, f in pairs]
    elif config.name is RewardName.PENALTY:
        totals = [penalty_reward(s, f, call_penalty=config.call_penalty) for s, f in pairs]
    elif config.name is RewardName.OUTCOME:
        totals = [outcome_reward(s, f) for s, f in pairs]
    else:
        totals = [sparse_reward(s, f, no_call_efficiency=config.no_call_efficiency) for s, f in pairs]
    return [Reward(total=total, process=None) for total in totals]


def _reduction_rate(group: Group) -> float:
    """Mean I over all calls of the group; 0 where it has none."""
    verdicts = np.concatenate([s.call_reduced for s in group.signals])
    return float(verdicts.mean()) if len(verdicts) else 0.0


def _check_outcome(outcome: float) -> None:
    if not 0.0 <= outcome <= 1.0:
        raise InvalidValueError(f"outcome is {outcome}; expected the task's score in [0, 1]")

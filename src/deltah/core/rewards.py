r"""Rewards made of outcomes and signals, those they are compared with, and the baselines of call rewards.

With F1 the task's score in [0, 1], n all calls of a trajectory and m those with $I_k = 1$:

* sparse: $r = F1 \cdot m / n$, and $F1 \cdot e_0$ at n = 0 (`no_call_efficiency`, ours: the sources do not say);
* dense: $r_k = F1 \cdot (1 + \alpha I_k)$ for every call k; centred: $F1 \cdot (1 + \alpha (I_k - \bar I))$;
* outcome: $r = F1$;
* penalty: $r = F1 - c \cdot n$;
* OTC (arXiv 2504.14870): $r = F1 \cdot r_{tool}$, which is 1 at the fewest calls of a correct trajectory of the group;
* shuffled: sparse on verdicts that were permuted over the batch: what sparse gains over it, entropy bought.

Undefined and undecided calls count in n and not in m. A reward is a function from a `Group` and its own options to one
of three results, registered where it is defined (see docs/extend.md). Options of a registration: `over_batch`, a
function from the signals of a whole batch and a random generator to the signals that the reward sees, and `untouched`
(True: a trainer leaves rewards and advantages as they are).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, TypeAlias

import numpy as np

from deltah.core.registry import Entry, Range, Registry, check_number, check_options, options_of
from deltah.core.signals import Signal
from deltah.core.types import FloatArray, Trajectory
from deltah.errors import InvalidValueError


@dataclass(frozen=True, kw_only=True)
class Group:
    """Trajectories of one prompt under one policy, with their signals and outcomes: the unit of an advantage.

    Raises:
        InvalidValueError: if the three sequences differ in length, or fewer than two trajectories are given.
    """

    trajectories: Sequence[Trajectory]
    signals: Sequence[Signal]
    outcomes: FloatArray
    """(G,) in [0, 1]"""

    def __post_init__(self) -> None:
        outcomes = np.asarray(self.outcomes, dtype=np.float64)
        object.__setattr__(self, "outcomes", outcomes)
        sizes = (len(self.trajectories), len(self.signals), len(outcomes))
        if len(set(sizes)) != 1 or sizes[0] < 2:
            raise InvalidValueError(
                f"a group needs two or more trajectories, each with a signal and an outcome; got {sizes} of them"
            )
        if len({t.group_id for t in self.trajectories}) > 1:
            raise InvalidValueError("a group mixes trajectories of different group ids")
        if not np.isfinite(outcomes).all():
            raise InvalidValueError("a group has an outcome that is not a number; leave that trajectory out")

    @property
    def pairs(self) -> list[tuple[Signal, float]]:
        """(signal, outcome) of each trajectory."""
        return list(zip(self.signals, self.outcomes.tolist(), strict=True))

    def __len__(self) -> int:
        """Number of trajectories G."""
        return len(self.trajectories)


@dataclass(frozen=True, slots=True)
class TrajectoryRewards:
    """One number per trajectory; advantages are its deviation from the group's mean."""

    values: FloatArray | Sequence[float]
    """(G,)"""


@dataclass(frozen=True, slots=True)
class CallRewards:
    """One number per call, compared with the group's calls; the final segment gets the outcome's advantage."""

    values: Sequence[FloatArray]
    """G arrays (C_i,)"""


@dataclass(frozen=True, slots=True)
class SegmentAdvantages:
    """Ready advantages of the segments r_0 ... r_R, for their sampled tokens; segment k - 1 issued round k."""

    values: Sequence[FloatArray]
    """G arrays (R_i + 1,)"""


Rewards: TypeAlias = TrajectoryRewards | CallRewards | SegmentAdvantages
REWARDS: Registry[Callable[..., Rewards]] = Registry("reward")
"""Rewards by name."""


Share: TypeAlias = Annotated[float, Range(0.0, 1.0)]


@REWARDS.register("outcome", meaning="F1: plain GRPO", untouched=True)
def outcome(group: Group) -> TrajectoryRewards:
    """F1 of every trajectory."""
    return TrajectoryRewards(group.outcomes)


@REWARDS.register("sparse", meaning="F1 * m / n: the share of calls that reduced entropy, per trajectory")
def sparse(group: Group, *, no_call_efficiency: Share = 1.0) -> TrajectoryRewards:
    """F1 * m / n of every trajectory, the method's sparse outcome reward; options as for `sparse_reward`."""
    return TrajectoryRewards([sparse_reward(s, f, no_call_efficiency=no_call_efficiency) for s, f in group.pairs])


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


@REWARDS.register("dense", meaning="F1 * (1 + alpha * I_k): more for each call that reduced entropy, on its own tokens")
def dense(group: Group, *, alpha: Annotated[float, Range(0.0, 100.0)] = 0.5, centred: bool = False) -> CallRewards:
    """F1 * (1 + alpha * I_k) of every call, the method's dense process reward.

    Args:
        group: G trajectories.
        alpha: Weight of a reduced call.
        centred: Take I_k less the group's reduction rate.
    """
    verdicts = np.concatenate([s.call_reduced for s in group.signals])
    rate = float(verdicts.mean()) if centred and len(verdicts) else 0.0
    return CallRewards([dense_reward(s, f, alpha, reduction_rate=rate) for s, f in group.pairs])


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


@REWARDS.register("penalty", meaning="F1 - c * n: the control that charges for calls and knows no entropy")
def penalty(group: Group, *, call_penalty: Share = 0.1) -> TrajectoryRewards:
    """F1 - c * n of every trajectory; `call_penalty` is c, in units of the outcome."""
    return TrajectoryRewards([f - call_penalty * s.n_calls for s, f in group.pairs])


@REWARDS.register(
    "otc", title="OTC", meaning="F1 * r_tool of OTC-GRPO: most for the fewest calls of a correct trajectory"
)
def otc(
    group: Group, *, otc_smoothing: Annotated[float, Range(1e-6, 1e6)] = 4.0, correct_at: float = 1.0
) -> TrajectoryRewards:
    r"""F1 * r_tool of OTC-GRPO (arXiv 2504.14870) with its outer weight at 1, for every trajectory.

    With n calls and $n^*$ the fewest of a correct trajectory of the group, r_tool is 1 if both are 0;
    $\cos(\pi n / (2 n + c))$ if $n^* = 0$; $\sin(\pi f / (2 n^*))$ with $f = 2 n n^* / (n + n^*)$ otherwise, which is 1
    at $n = n^*$.

    The form was checked against public accounts of the paper and an independent implementation of it, not against its
    text. The default of c is ours, and so is $n^* = n$ where no trajectory is correct.

    Args:
        group: G trajectories.
        otc_smoothing: c.
        correct_at: Outcome from which a trajectory counts as correct.
    """
    for f in group.outcomes.tolist():
        _check_outcome(f)
    n = np.array([s.n_calls for s in group.signals], dtype=np.float64)
    correct = group.outcomes >= correct_at
    best = n[correct].min() if correct.any() else n
    with np.errstate(invalid="ignore"):
        tool = np.where(best == 0, np.cos(np.pi * n / (2 * n + otc_smoothing)), np.sin(np.pi * n / (n + best)))
    return TrajectoryRewards(group.outcomes * tool)


def shuffle_verdicts(signals: Sequence[Signal], rng: np.random.Generator) -> list[Signal]:
    """Permute the verdicts among the rounds of one index, across the batch: the shuffled-sign control.

    A round of which no call was answered has no verdict to give or take and stays undefined. With one call per round, m
    of the batch is kept.

    Args:
        signals: A batch, best large: within one group of like verdicts a shuffle changes nothing.
        rng: Source of the permutation.

    Returns:
        Signals of the same shape whose `value`, bounds and verdicts moved together.
    """
    origin = [[signal] * signal.n_rounds for signal in signals]
    for k in range(max((s.n_rounds for s in signals), default=0)):
        holders = [i for i, s in enumerate(signals) if s.answered[s.round_of_call == k].any()]
        for target, source in zip(holders, rng.permutation(holders), strict=True):
            origin[target][k] = signals[source]
    moved = []
    for signal, sources in zip(signals, origin, strict=True):
        rounds = [(s.value[k], s.lower[k], s.upper[k]) for k, s in enumerate(sources)]
        value, lower, upper = np.array(rounds, dtype=np.float64).reshape(-1, 3).T.copy()
        verdicts = tuple(s.verdicts[k] for k, s in enumerate(sources))
        moved.append(replace(signal, value=value, lower=lower, upper=upper, verdicts=verdicts))
    return moved


@REWARDS.register(
    "shuffled",
    meaning="sparse on verdicts that were shuffled over the batch: the control without entropy",
    over_batch=shuffle_verdicts,
)
def shuffled(group: Group, *, no_call_efficiency: Share = 1.0) -> TrajectoryRewards:
    """The sparse reward of a batch whose verdicts `shuffle_verdicts` permuted."""
    return sparse(group, no_call_efficiency=no_call_efficiency)


def _check_outcome(outcome: float) -> None:
    if not 0.0 <= outcome <= 1.0:
        raise InvalidValueError(f"outcome is {outcome}; expected the task's score in [0, 1]")


def normalise(values: FloatArray, *, scale: bool = True, eps: float = 1e-4) -> FloatArray:
    """(N,) rewards of one group as (r - mean) / (std + eps), std with n - 1; a group of one gets 0."""
    if len(values) < 2:
        return np.zeros(len(values))
    centred = values - values.mean()
    return np.asarray(centred / (values.std(ddof=1) + eps)) if scale else centred


PoolingRule: TypeAlias = Callable[[Sequence[FloatArray], bool, float], list[FloatArray]]
"""From G arrays (C_i,) of call rewards, `scale` and `eps` to G arrays (C_i,) of advantages."""
POOLINGS: Registry[PoolingRule] = Registry("pooling")
"""Baselines of a call's advantage."""


@POOLINGS.register("pooled", meaning="Mean over all calls of the group: trajectories with many calls weigh more")
def _pooled(rewards: Sequence[FloatArray], scale: bool, eps: float) -> list[FloatArray]:
    flat = normalise(np.concatenate(rewards), scale=scale, eps=eps)
    return np.split(flat, np.cumsum([len(r) for r in rewards])[:-1])


@POOLINGS.register("trajectory_mean", meaning="Mean over trajectories of their mean call reward: each weighs the same")
def _trajectory_mean(rewards: Sequence[FloatArray], scale: bool, eps: float) -> list[FloatArray]:
    return _scaled(rewards, [_mean_of_means(rewards)] * len(rewards), scale, eps)


@POOLINGS.register("leave_one_out", meaning="As `trajectory_mean`, without the trajectory itself")
def _leave_one_out(rewards: Sequence[FloatArray], scale: bool, eps: float) -> list[FloatArray]:
    others = [[r for j, r in enumerate(rewards) if j != i] for i in range(len(rewards))]
    baselines = [_mean_of_means(rest if any(map(len, rest)) else rewards) for rest in others]
    return _scaled(rewards, baselines, scale, eps)


def _mean_of_means(rewards: Sequence[FloatArray]) -> float:
    """Mean over trajectories of their mean call reward; 0 without a call."""
    means = [r.mean() for r in rewards if len(r)]
    return float(np.mean(means)) if means else 0.0


def _scaled(rewards: Sequence[FloatArray], baselines: Sequence[float], scale: bool, eps: float) -> list[FloatArray]:
    """Rewards less their baselines, over the spread about the mean of means, each trajectory alike."""
    centred = [r - baseline for r, baseline in zip(rewards, baselines, strict=True)]
    called = [r for r in rewards if len(r)]
    if not scale or not called:
        return centred
    centre = _mean_of_means(called)
    spread = np.sqrt(np.mean([((r - centre) ** 2).mean() for r in called]))
    return [c / (spread + eps) for c in centred]


@dataclass(frozen=True, slots=True, init=False)
class RewardConfig:
    """Which reward, its options, and how advantages are made of it.

    Options may be given flat, `RewardConfig(name="dense", alpha=0.3)`. One that only other rewards have is kept and
    not used, so that one configuration serves several rewards.

    Raises:
        InvalidValueError: if a name or an option does not exist, or a value is out of range.
    """

    name: str = "sparse"
    """A name in `REWARDS`, or `package.module:function`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the reward's own function."""
    pooling: str = "pooled"
    """Baseline of a call's advantage: a name in `POOLINGS`, or `package.module:function`."""
    scale: bool = True
    """Divide advantages by the group's standard deviation (n - 1 in the denominator)."""
    eps: float = 1e-4
    """Added to that standard deviation; TRL's value."""
    correctness_first: bool = False
    """Efficiency may order correct trajectories among themselves, but no token of one gets less than any token of an
    incorrect one, nor less than the smaller of 0 and its outcome-only advantage."""
    correct_at: float = 1.0
    """Outcome from which a trajectory counts as correct."""

    def __init__(self, name: str = "sparse", *, options: Mapping[str, Any] | None = None, **flat: Any) -> None:
        object.__setattr__(self, "name", name)
        for own in fields(self):
            if own.name not in ("name", "options"):
                object.__setattr__(self, own.name, flat.pop(own.name, own.default))
        object.__setattr__(self, "options", {**(options or {}), **flat})
        self.__post_init__()

    def __post_init__(self) -> None:  # msgspec, which reads configuration files, calls this one alone
        POOLINGS.resolve(self.pooling)
        check_number("eps", self.eps, 0.0, 1.0)
        check_number("correct_at", self.correct_at, 1e-9, 1.0)
        function = self.entry.value
        known = options_of(function)
        for own in fields(self):  # the function gets the field's value: another default would be lost unseen
            if own.name in known and known[own.name] != own.default:
                raise InvalidValueError(
                    f"the option {own.name!r} of reward {self.name!r} is also a field of RewardConfig with the "
                    f"default {own.default!r}; rename it, or give it that default"
                )
        for key, value in self.options.items():
            other = next((e.value for e in REWARDS.values() if key in options_of(e.value)), function)
            check_options(function if key in known else other, {key: value}, f"reward {self.name!r}")
        defaults = {key: value for key, value in known.items() if key not in self.__dataclass_fields__}
        object.__setattr__(self, "options", defaults | self.options)

    @property
    def entry(self) -> Entry[Callable[..., Rewards]]:
        """The reward's entry in the registry."""
        return REWARDS.resolve(self.name)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the reward's function: its options, and the fields that it asks for by name."""
        return {key: self.options.get(key, getattr(self, key, None)) for key in options_of(self.entry.value)}

    @property
    def over_batch(self) -> Callable[[Sequence[Signal], np.random.Generator], Sequence[Signal]] | None:
        """What happens to the signals of a whole batch before any group is rewarded; None: nothing."""
        return self.entry.options.get("over_batch")

    def to_dict(self) -> dict[str, Any]:
        """Plain flat form, as a configuration file has it, every option stated."""
        own = {key: getattr(self, key) for key in self.__dataclass_fields__ if key != "options"}
        return {**self.options, **own}


def reward_config(given: RewardConfig | str | None) -> RewardConfig:
    """Configuration from what a caller wrote: in full, by name, or None for sparse."""
    return given if isinstance(given, RewardConfig) else RewardConfig(given or "sparse")

"""Advantages within one group: GRPO's normalisation, and the baselines that call rewards are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from deltah.core.registry import Registry
from deltah.core.types import FloatArray


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
    means = [float(r.mean()) for r in rewards if len(r)]
    centre = float(np.mean(means)) if means else 0.0
    return _scaled(rewards, [centre] * len(rewards), scale, eps)


@POOLINGS.register("leave_one_out", meaning="As `trajectory_mean`, without the trajectory itself")
def _leave_one_out(rewards: Sequence[FloatArray], scale: bool, eps: float) -> list[FloatArray]:
    means = {i: float(r.mean()) for i, r in enumerate(rewards) if len(r)}
    others = [[mean for j, mean in means.items() if j != i] or list(means.values()) for i in range(len(rewards))]
    return _scaled(rewards, [float(np.mean(rest)) if rest else 0.0 for rest in others], scale, eps)


def _scaled(rewards: Sequence[FloatArray], baselines: Sequence[float], scale: bool, eps: float) -> list[FloatArray]:
    """Rewards less their baselines, over the spread about the mean of trajectory means, each trajectory alike."""
    centred = [r - baseline for r, baseline in zip(rewards, baselines, strict=True)]
    called = [r for r in rewards if len(r)]
    if not scale or not called:
        return centred
    centre = np.mean([r.mean() for r in called])
    spread = np.sqrt(np.mean([((r - centre) ** 2).mean() for r in called]))
    return [c / (spread + eps) for c in centred]

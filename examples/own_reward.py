"""A reward of your own: plain GRPO, less a price of each call on the segment that issued it, more where it was in vain.

    python examples/own_reward.py

The command line finds it too, where the file can be imported:

    PYTHONPATH=examples deltah train --reward own_reward:priced --set reward.price=0.2 ...
"""

import numpy as np

import deltah
from deltah import REWARDS, Group, RewardConfig, Segment, SegmentAdvantages, ToolCall, Trajectory

NAN = float("nan")


@REWARDS.register("priced", meaning="outcome advantage less a price of each call on the tokens that issued it")
def priced(group: Group, *, price: float = 0.1) -> SegmentAdvantages:
    """A_i - price * calls of the round; twice the price where the round did not reduce entropy."""
    centred = group.outcomes - group.outcomes.mean()
    advantages = []
    for trajectory, signal, own in zip(group.trajectories, group.signals, centred, strict=True):
        calls = np.array([len(r.calls) for r in trajectory.rounds], dtype=float)
        cost = price * calls * np.where(signal.reduced, 1.0, 2.0)
        advantages.append(np.append(own - cost, own))  # the last segment issues no call
    return SegmentAdvantages(advantages)


def rollout(name: str, entropy: list[float]) -> Trajectory:
    """Two tokens of thought, a call, its result, two tokens of answer."""
    spans = [("reasoning", 0, 2, 0), ("call", 2, 3, 0), ("result", 3, 4, 0), ("reasoning", 4, 6, 1)]
    return Trajectory(
        id=name,
        segments=tuple(Segment(kind=k, start=a, stop=b, turn=t) for k, a, b, t in spans),
        calls=(ToolCall(id="1", name="search", arguments="{}", turn=0, result="Velmora is a city."),),
        entropy=entropy,
        estimator="exact",
    )


def main() -> None:
    """Print the advantage of every token of one group."""
    group = [rollout("certain", [2.0, 1.0, 0.2, NAN, 0.5, 0.1]), rollout("in vain", [0.5, 0.3, 0.2, NAN, 0.9, 1.0])]
    credit = deltah.batch_credit(
        group, [deltah.score(t) for t in group], np.array([1.0, 1.0]), ["q1", "q1"], RewardConfig("priced")
    )
    for trajectory, advantages in zip(group, credit.tokens, strict=True):
        print(f"{trajectory.id:>8}: {advantages.round(2)}")


if __name__ == "__main__":
    main()

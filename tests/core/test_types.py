"""Trajectories: what they refuse, and that what they derive costs linear time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from builders import make_trajectory
from growth import growth

from deltah import RewardConfig, Segment, ToolCall, Trajectory, score
from deltah.errors import InvalidValueError


def test_an_entropy_is_not_negative(trajectory: Trajectory) -> None:
    assert trajectory.entropy is not None
    first = int(np.flatnonzero(trajectory.response_mask)[0])
    wrong = trajectory.entropy.copy()
    wrong[first] = -0.5
    with pytest.raises(InvalidValueError, match=f"token {first} has an entropy of -0.5; expected nats, 0 or more"):
        replace(trajectory, entropy=wrong)
    with pytest.raises(InvalidValueError, match=f"token {first} has an entropy of -0.5"):
        replace(trajectory, entropy_lower=wrong, entropy_upper=trajectory.entropy, estimator="top_k")
    wrong[first] = -1e-6  # what float32 makes of a point mass
    assert replace(trajectory, entropy=wrong).entropy[first] == -1e-6


@pytest.mark.parametrize("nats", [1e7, 1e200, float("inf")])
def test_an_entropy_is_that_of_a_distribution(trajectory: Trajectory, nats: float) -> None:
    assert trajectory.entropy is not None
    first = int(np.flatnonzero(trajectory.response_mask)[0])
    wrong = trajectory.entropy.copy()
    wrong[first] = nats
    with pytest.raises(InvalidValueError, match=f"token {first} has an entropy of .*at most the logarithm"):
        replace(trajectory, entropy=wrong)
    bounded = replace(trajectory, entropy_lower=trajectory.entropy, entropy_upper=wrong, estimator="top_k")
    assert bounded.entropy_upper is not None  # an upper bound may be infinite
    assert bounded.entropy_upper[first] == nats


def test_unknown_members_of_closed_sets_name_the_choices(trajectory: Trajectory) -> None:
    with pytest.raises(InvalidValueError, match="unknown segment kind 'think'; choose one of: prompt, reasoning"):
        Segment(kind="think", start=0, stop=1, turn=0)
    with pytest.raises(InvalidValueError, match="unknown call status 'lost'; choose one of: ok, error, unanswered"):
        ToolCall(id="c", name="f", arguments="", turn=0, result="x", status="lost")
    with pytest.raises(InvalidValueError, match="unknown stop reason 'eos'; choose one of: answered"):
        replace(trajectory, stop_reason="eos")
    with pytest.raises(InvalidValueError, match="unknown pooling 'xx'; choose one of: pooled, trajectory_mean"):
        RewardConfig(pooling="xx")
    with pytest.raises(InvalidValueError, match=r"alpha is '0\.5'; expected a number, from 0 to 100"):
        RewardConfig(alpha="0.5")


def test_thousands_of_turns_cost_linear_time() -> None:
    def work(n_turns: int) -> None:
        signal = score(replace(made[n_turns]))
        assert signal.n_rounds == signal.n_calls == n_turns - 1
        assert len(signal.call_verdicts) == n_turns - 1

    made = {n: make_trajectory([[1.0, 2.0]] * n) for n in (501, 5001)}
    assert growth(work, 501, 5001) < 30, "ten times the turns; quadratic time would be a hundred"

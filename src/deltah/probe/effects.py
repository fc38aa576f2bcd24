"""One row a call: what its result did to the probability of the answer and to the entropy of what followed.

For each of the three contexts the best golden answer is the one of greatest total log-probability; taken in each
context alike, so that the choice favours none. Gains are differences of its log-probability, in nats::

    gain_placebo = log P(gold | real) - log P(gold | placebo)        total, and per token
    gain_none    = log P(gold | real) - log P(gold | none)
    useful       = both > threshold                                  default log 2: the answer became twice as likely
    delta_h_placebo = H(r_k | real) - H(r_k | placebo)               negative: the result made r_k more certain
    delta_h_none    = H(r_k | real) - H(r_k | none)

Both controls are asked, because either alone misleads: without a result the turn reads differently, and an unrelated
result does not only withhold, it can draw a model that trusts the latest result away from what it knew. A repeated call
then beats its placebo and yet changes nothing.

r_k is the logged reasoning of the next turn, the same tokens in every context. With interval entropies a difference
lies in [L_real - U_other, U_real - L_other]. NaN is "not measured".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltah.core.types import Estimator, FloatArray
from deltah.probe.cache import ProbeCache
from deltah.probe.plan import CallPlan, Skipped, Target, Variant
from deltah.probe.types import Scores, question_key

NAN = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gold:
    """The best golden answer in one context."""

    total: float = NAN
    """Log-probability of the answer's tokens, nats."""
    per_token: float = NAN
    n_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entropy:
    """Mean entropy of r_k in one context, nats."""

    point: float = NAN
    lower: float = NAN
    upper: float = NAN
    n_tokens: int = 0
    estimator: Estimator = Estimator.NONE

    def minus(self, other: Entropy) -> tuple[float, float, float]:
        """(point, lower, upper) of the difference, by interval arithmetic."""
        if np.isinf(self.upper) or np.isinf(other.upper):
            lower = -np.inf if np.isinf(other.upper) else self.lower - other.upper
            upper = np.inf if np.isinf(self.upper) else self.upper - other.lower
            return self.point - other.point, float(lower), float(upper)
        return self.point - other.point, self.lower - other.upper, self.upper - other.lower


def best_gold(answers: Sequence[Scores]) -> Gold:
    """The golden answer of greatest total log-probability, ties to the first; NaN if no answer was measured."""
    found = [_gold(scores.logprobs[scores.focus]) for scores in answers]
    measured = [gold for gold in found if not np.isnan(gold.total)]
    return max(measured, key=lambda gold: gold.total, default=Gold())


def mean_entropy(scores: Scores | None) -> Entropy:
    """Mean over the measured tokens in focus, with the mean of their bounds."""
    if scores is None:
        return Entropy()
    used = scores.focus & ~np.isnan(scores.entropy)
    if not used.any():
        return Entropy()
    return Entropy(
        point=float(scores.entropy[used].mean()),
        lower=float(scores.lower[used].mean()),
        upper=float(scores.upper[used].mean()),
        n_tokens=int(used.sum()),
        estimator=scores.estimator,
    )


def row_of(plan: CallPlan, cache: ProbeCache, identity: Mapping[str, Any], threshold: float) -> dict[str, Any]:
    """Row of a call whose queries are all answered."""
    gold, entropy = {}, {}
    for variant in Variant:
        queries, segment = plan.context_queries(variant)
        gold[variant] = best_gold([cache[query] for query in queries])
        entropy[variant] = mean_entropy(None if segment is None else cache[segment])
    gain = {v: _difference(gold[Variant.REAL], gold[v]) for v in (Variant.PLACEBO, Variant.NONE)}
    donor = plan.donor
    return {
        **_head(plan.target, identity),
        "reason": None,
        "contexts": plan.contexts.form.value,
        "answer_template": plan.template,
        "n_answers": len(plan.gold),
        **{f"gold_logprob_{v}": gold[v].total for v in Variant},
        **{f"gold_logprob_per_token_{v}": gold[v].per_token for v in Variant},
        "gold_tokens": gold[Variant.REAL].n_tokens,
        **{f"gain_{v}": total for v, (total, _) in gain.items()},
        **{f"gain_per_token_{v}": per_token for v, (_, per_token) in gain.items()},
        "useful": _exceeds(float(np.min([total for total, _ in gain.values()])), threshold),
        "beats_placebo": _exceeds(gain[Variant.PLACEBO][0], threshold),
        "beats_none": _exceeds(gain[Variant.NONE][0], threshold),
        "threshold": threshold,
        **dict(_entropies(entropy)),
        "segment_tokens": entropy[Variant.REAL].n_tokens,
        "estimator": entropy[Variant.REAL].estimator.value,
        "temperature": 1.0,
        "model_tokens": sum(cache[query].n_tokens for query in plan.queries()),
        "placebo_trajectory": donor.trajectory.id,
        "placebo_call": donor.trajectory.calls[donor.call].id,
    }


def skipped_row(skipped: Skipped, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Row of a call that was not probed."""
    detail = {} if skipped.detail is None else {"detail": skipped.detail}
    return {**_head(skipped.target, identity), "reason": skipped.reason.value, **detail}


def _head(target: Target, identity: Mapping[str, Any]) -> dict[str, Any]:
    trajectory = target.trajectory
    call = trajectory.calls[target.call]
    return {
        "trajectory": trajectory.id,
        "call": call.id,
        "tool": call.name,
        "round": int(trajectory.round_of_call[target.call]) + 1,
        "question": question_key(trajectory),
        "backend": identity["backend"],
        "model": identity["model"],
    }


def _gold(logprobs: FloatArray) -> Gold:
    if not len(logprobs) or np.isnan(logprobs).any():
        return Gold()
    return Gold(total=float(logprobs.sum()), per_token=float(logprobs.mean()), n_tokens=len(logprobs))


def _difference(real: Gold, other: Gold) -> tuple[float, float]:
    """Gain in total and per token; NaN where both are impossible."""
    with np.errstate(invalid="ignore"):
        return float(np.subtract(real.total, other.total)), float(np.subtract(real.per_token, other.per_token))


def _exceeds(value: float, threshold: float) -> bool | None:
    """None where the value was not measured."""
    return None if np.isnan(value) else value > threshold


def _entropies(entropy: Mapping[Variant, Entropy]) -> Iterator[tuple[str, float]]:
    for variant, h in entropy.items():
        yield from ((f"h_{variant}", h.point), (f"h_{variant}_lower", h.lower), (f"h_{variant}_upper", h.upper))
    for variant in (Variant.PLACEBO, Variant.NONE):
        point, lower, upper = entropy[Variant.REAL].minus(entropy[variant])
        name = f"delta_h_{variant}"
        yield from ((name, point), (f"{name}_lower", lower), (f"{name}_upper", upper))

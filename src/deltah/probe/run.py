"""A probe from end to end: ask what is not cached yet, and make one row per call.

A call whose query fails is listed with its reason and the run goes on; an error that would meet every query (no access,
server gone, full disk) stops the run, which continues from the cache when it is started again.

The best golden answer of a context is the one of greatest total log-probability. The field names call the control
result "placebo"; r_k is the logged reasoning of the next turn, the same tokens in every context::

    gain_placebo = log P(gold | real) - log P(gold | control)        nats, total and per token
    gain_none    = log P(gold | real) - log P(gold | none)
    useful       = both > threshold                                  default log 2: the answer became twice as likely
    delta_h_placebo = H(r_k | real) - H(r_k | control)               negative: the result made r_k more certain
    delta_h_none    = H(r_k | real) - H(r_k | none)

Either gain alone misleads: without a result the turn reads differently, and an unrelated one can draw a model away from
what it knew. NaN is "not measured".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from deltah.core.types import Estimator, Trajectory
from deltah.probe.contexts import LoggedCall
from deltah.probe.plan import CallPlan, Plan, ProbeConfig, Variant, skipped_by
from deltah.probe.queries import Backend, ProbeCache, QueryError, Scores, question_key

NAN = float("nan")


class Cost(NamedTuple):
    """What a plan costs."""

    calls: int
    queries: int
    cached: int
    """Queries whose answer is on disk."""
    tokens: int
    """Tokens that the model reads for the others; fewer where it shares the prefix of a call's contexts."""


def cost_of(plan: Plan, backend: Backend, cache: ProbeCache) -> Cost:
    """Count what is still to be asked."""
    queries = [query for call in plan.calls for query in call.queries()]
    missing = [query for query in queries if query not in cache]
    return Cost(
        calls=len(plan.calls),
        queries=len(queries),
        cached=len(queries) - len(missing),
        tokens=sum(map(backend.count, missing)),
    )


def run_plan(
    plan: Plan,
    trajectories: Sequence[Trajectory],
    backend: Backend,
    cache: ProbeCache,
    config: ProbeConfig,
    *,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Probe the planned calls; one row per call within the budget, in the order of the trajectories.

    The `reason` of a row says why its call was not probed; None: it was.
    """
    rows: list[tuple[LoggedCall, dict[str, Any]]] = []
    skipped = list(plan.skipped)
    for done, call in enumerate(plan.calls, start=1):
        missing = [query for query in call.queries() if query not in cache]
        try:
            for query, scores in zip(missing, backend.score(missing), strict=True):
                cache.put(query, scores)
        except QueryError as error:
            skipped.append(skipped_by(call.target, error))
        else:
            rows.append((call.target, row_of(call, cache, backend.identity, config.threshold)))
        progress(done, len(plan.calls))
    for s in skipped:
        why = {"reason": s.reason.value} | ({} if s.detail is None else {"detail": s.detail})
        rows.append((s.target, _head(s.target, backend.identity) | why))
    place = {id(trajectory): i for i, trajectory in enumerate(trajectories)}
    rows.sort(key=lambda pair: (place[id(pair[0].trajectory)], pair[0].index))
    return [row for _, row in rows]


class Gold(NamedTuple):
    """The best golden answer in one context."""

    total: float = NAN
    """Log-probability of the answer's tokens, nats."""
    per_token: float = NAN
    n_tokens: int = 0


class Entropy(NamedTuple):
    """Mean entropy of r_k in one context, nats."""

    point: float = NAN
    lower: float = NAN
    upper: float = NAN
    n_tokens: int = 0
    estimator: Estimator = Estimator.NONE

    def minus(self, other: Entropy) -> tuple[float, float, float]:
        """(point, lower, upper) of the difference, by interval arithmetic."""
        return self.point - other.point, self.lower - other.upper, self.upper - other.lower


def best_gold(answers: Sequence[Scores]) -> Gold:
    """The golden answer of greatest total log-probability, ties to the first; NaN if no answer was measured."""
    measured = [
        Gold(total=float(logprobs.sum()), per_token=float(logprobs.mean()), n_tokens=len(logprobs))
        for logprobs in (scores.logprobs[scores.focus] for scores in answers)
        if len(logprobs) and not np.isnan(logprobs).any()
    ]
    return max(measured, key=lambda gold: gold.total, default=Gold())


def mean_entropy(scores: Scores | None) -> Entropy:
    """Mean over the measured tokens in focus, with the mean of their bounds."""
    if scores is None or not (used := scores.focus & ~np.isnan(scores.entropy)).any():
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
    real, control = gold[Variant.REAL], plan.control
    others = (Variant.CONTROL, Variant.NONE)
    gain = {v: real.total - gold[v].total for v in others}
    return {
        **_head(plan.target, identity),
        "reason": None,
        "contexts": plan.contexts.form,
        "answer_template": plan.template,
        "n_answers": len(plan.gold),
        **{f"gold_logprob_{v}": gold[v].total for v in Variant},
        **{f"gold_logprob_per_token_{v}": gold[v].per_token for v in Variant},
        "gold_tokens": real.n_tokens,
        **{f"gain_{v}": gain[v] for v in others},
        **{f"gain_per_token_{v}": real.per_token - gold[v].per_token for v in others},
        "useful": _exceeds(float(np.min(list(gain.values()))), threshold),
        "beats_placebo": _exceeds(gain[Variant.CONTROL], threshold),
        "beats_none": _exceeds(gain[Variant.NONE], threshold),
        "threshold": threshold,
        **dict(_entropies(entropy)),
        "segment_tokens": entropy[Variant.REAL].n_tokens,
        "estimator": entropy[Variant.REAL].estimator.value,
        "temperature": 1.0,
        "model_tokens": sum(cache[query].n_tokens for query in plan.queries()),
        "placebo_trajectory": control.trajectory.id,
        "placebo_call": control.call.id,
    }


def _head(target: LoggedCall, identity: Mapping[str, Any]) -> dict[str, Any]:
    trajectory, call = target.trajectory, target.call
    return {
        "trajectory": trajectory.id,
        "call": call.id,
        "tool": call.name,
        "round": int(trajectory.round_of_call[target.index]) + 1,
        "question": question_key(trajectory),
        "backend": identity["backend"],
        "model": identity["model"],
    }


def _exceeds(value: float, threshold: float) -> bool | None:
    """None where the value was not measured."""
    return None if np.isnan(value) else value > threshold


def _entropies(entropy: Mapping[Variant, Entropy]) -> Iterator[tuple[str, float]]:
    for variant, h in entropy.items():
        yield from ((f"h_{variant}", h.point), (f"h_{variant}_lower", h.lower), (f"h_{variant}_upper", h.upper))
    for variant in (Variant.CONTROL, Variant.NONE):
        point, lower, upper = entropy[Variant.REAL].minus(entropy[variant])
        name = f"delta_h_{variant}"
        yield from ((name, point), (f"{name}_lower", lower), (f"{name}_upper", upper))

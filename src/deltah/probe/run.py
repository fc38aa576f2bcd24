"""A probe from end to end: plan, ask what is not cached yet, and make one row a call.

Every answer is on disk before it is used. A call whose query fails is listed with its reason and the run goes on; an
error that would meet every query (no access, server gone, full disk) stops the run, which continues from the cache when
it is started again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from deltah.core.types import Trajectory
from deltah.probe.cache import ProbeCache
from deltah.probe.effects import row_of, skipped_row
from deltah.probe.plan import CallPlan, Plan, ProbeConfig, Reason, Skipped, Target, skipped_by
from deltah.probe.types import Backend, QueryError

Progress: TypeAlias = Callable[[int, int, dict[str, float]], None]
"""Called with (calls done, calls planned, {})."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a plan costs, in tokens that the model reads."""

    calls: int
    queries: int
    cached: int
    """Queries whose answer is on disk."""
    tokens: int
    """Tokens of the others. Backends that share the prefix of a call's contexts compute fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What a probe found."""

    rows: tuple[dict[str, Any], ...]
    """One a call, those not probed included, in the order of the trajectories."""
    reasons: Counter[Reason]
    """How many calls were not probed, by reason."""
    n_left: int
    """Calls over the budget; they have no row."""

    @property
    def probed(self) -> list[dict[str, Any]]:
        """Rows of the calls that were probed."""
        return [row for row in self.rows if row["reason"] is None]


def cost_of(plan: Plan, backend: Backend, cache: ProbeCache) -> Cost:
    """Count what is still to be asked, before anything is."""
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
    progress: Progress | None = None,
) -> ProbeResult:
    """Probe the planned calls.

    Args:
        plan: As `make_plan` gives it.
        trajectories: Those the plan was made of; they fix the order of the rows.
        backend: The model.
        cache: Its answers so far.
        config: As given to `make_plan`.
        progress: Called after each call.

    Raises:
        DeltahError: if the model or the cache fails for good; what was answered is kept.
    """
    rows: list[tuple[Target, dict[str, Any]]] = []
    skipped = list(plan.skipped)
    for done, call in enumerate(plan.calls, start=1):
        failure = _ask(call, backend, cache)
        if failure is None:
            rows.append((call.target, row_of(call, cache, backend.identity, config.threshold)))
        else:
            skipped.append(failure)
        if progress is not None:
            progress(done, len(plan.calls), {})
    rows += [(s.target, skipped_row(s, backend.identity)) for s in skipped]
    place = {id(trajectory): i for i, trajectory in enumerate(trajectories)}
    rows.sort(key=lambda pair: (place[id(pair[0].trajectory)], pair[0].call))
    return ProbeResult(
        rows=tuple(row for _, row in rows), reasons=Counter(s.reason for s in skipped), n_left=plan.n_left
    )


def _ask(call: CallPlan, backend: Backend, cache: ProbeCache) -> Skipped | None:
    """Fetch the missing answers of one call; what went wrong if the model cannot answer one."""
    missing = [query for query in call.queries() if query not in cache]
    try:
        for query, scores in zip(missing, backend.score(missing), strict=True):
            cache.put(query, scores)
    except QueryError as error:
        return skipped_by(call.target, error)
    return None

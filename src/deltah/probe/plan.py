"""Which calls are probed, why others cannot be, and what it costs: settled before a model reads a token.

The sample takes one call of every question, in random order, then a second one, and so on, until the budget is spent:
questions with many calls do not crowd out the others. It depends on the seed and on the names of the calls, not on the
order of the files.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from deltah.core.types import Trajectory
from deltah.errors import InvalidValueError
from deltah.probe import answers
from deltah.probe.contexts import Contexts, Splicer, contexts_of, joined
from deltah.probe.control_result import Donor, DonorPool
from deltah.probe.types import Backend, ContextTooLongError, Query, QueryError, TextContinuation, question_key

DOUBLED: Final = math.log(2.0)
"""Nats by which the log-probability of an answer rises when its probability doubles."""


class Reason(StrEnum):
    """Why a call was not probed."""

    UNANSWERED = "unanswered"
    """No result followed."""
    NO_GOLD = "no_golden_answer"
    """The trajectory does not say what is right."""
    NO_PLACEBO = "no_placebo"
    """No other question's result of the same tool is of like length and free of the golden answer."""
    TOO_LONG = "context_too_long"
    """A context does not fit the model's window."""
    REFUSED = "refused"
    """The template or the server does not take the messages; `detail` says why."""


class Variant(StrEnum):
    """What stands where the call's result stood."""

    REAL = "real"
    NONE = "none"
    PLACEBO = "placebo"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeConfig:
    """What is probed, and how it is judged."""

    max_calls: int | None = None
    """Budget of calls; None: all that can be probed."""
    seed: int = 0
    """Of the sample of calls and of the placebos."""
    answer_template: str | None = None
    """Text with `{answer}` in it, or "sentence"; None: the form of the trajectory's own final answer."""
    max_answers: int = 4
    """Golden answers tried of each trajectory, the first ones."""
    threshold: float = DOUBLED
    """A call is useful if its gain over either control exceeds so many nats."""

    def __post_init__(self) -> None:
        if self.answer_template is not None:
            answers.check_template(self.answer_template)
        if self.max_calls is not None and self.max_calls < 1:
            raise InvalidValueError(f"max_calls is {self.max_calls}; expected 1 or more")
        if self.max_answers < 1:
            raise InvalidValueError(f"max_answers is {self.max_answers}; expected 1 or more")
        if not math.isfinite(self.threshold):
            raise InvalidValueError(f"threshold is {self.threshold}; expected a number of nats")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One call of one trajectory."""

    trajectory: Trajectory
    call: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A call that cannot be probed."""

    target: Target
    reason: Reason
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPlan:
    """Everything to ask about one call."""

    target: Target
    donor: Donor
    contexts: Contexts
    template: str
    gold: tuple[TextContinuation, ...]

    def context_queries(self, variant: Variant) -> tuple[list[Query], Query | None]:
        """Queries of one context: each golden answer, and the logged segment if there is one."""
        context = getattr(self.contexts, variant.value)
        if context is None:
            return [], None
        segment = self.contexts.segment
        return [joined(context, c) for c in self.gold], None if segment is None else joined(context, segment)

    def queries(self) -> list[Query]:
        """All queries of the call."""
        pairs = [self.context_queries(variant) for variant in Variant]
        return [query for gold, segment in pairs for query in (*gold, *([segment] if segment else []))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a probe will do."""

    calls: tuple[CallPlan, ...]
    skipped: tuple[Skipped, ...]
    n_left: int
    """Calls that could be probed but are over the budget."""
    n_tokens: tuple[int, ...]
    """Tokens the model reads for each planned call, shared prefixes counted anew for every query."""


def make_plan(trajectories: Sequence[Trajectory], backend: Backend, config: ProbeConfig) -> Plan:
    """Choose calls, placebos and texts, and count their tokens."""
    pool, splicer = DonorPool(trajectories), Splicer(backend.view)
    forms = answers.templates(trajectories, config.answer_template)
    template = {id(trajectory): form for trajectory, form in zip(trajectories, forms, strict=True)}
    targets = [Target(trajectory=t, call=i) for t in trajectories for i in range(t.n_calls)]
    eligible, skipped = _eligible(targets)
    calls, n_tokens, tried = list[CallPlan](), list[int](), 0
    for target in sample(eligible, config.seed):
        if len(calls) == config.max_calls:
            break
        tried += 1
        planned = _plan_call(target, pool, splicer, template[id(target.trajectory)], config)
        tokens = planned if isinstance(planned, Skipped) else _count(planned, backend)
        if isinstance(planned, CallPlan) and isinstance(tokens, int):
            calls.append(planned)
            n_tokens.append(tokens)
        elif isinstance(tokens, Skipped):
            skipped.append(tokens)
    return Plan(calls=tuple(calls), skipped=tuple(skipped), n_left=len(eligible) - tried, n_tokens=tuple(n_tokens))


def sample(targets: Sequence[Target], seed: int) -> list[Target]:
    """All targets in the order in which a budget takes them: one of every question, then a second one, and so on."""
    by_question: dict[str, list[Target]] = defaultdict(list)
    for target in sorted(targets, key=_name):
        by_question[question_key(target.trajectory)].append(target)
    rng = np.random.default_rng([seed, 1])
    questions = [by_question[key] for key in sorted(by_question)]
    shuffled = [[found[i] for i in rng.permutation(len(found))] for found in questions]
    order = [shuffled[i] for i in rng.permutation(len(shuffled))]
    longest = max(map(len, order), default=0)
    return [found[i] for i in range(longest) for found in order if i < len(found)]


def _name(target: Target) -> tuple[str, int]:
    return target.trajectory.id, target.call


def _eligible(targets: Sequence[Target]) -> tuple[list[Target], list[Skipped]]:
    eligible, skipped = list[Target](), list[Skipped]()
    for target in targets:
        if target.trajectory.calls[target.call].result is None:
            skipped.append(Skipped(target=target, reason=Reason.UNANSWERED))
        elif not any(answer.strip() for answer in target.trajectory.golden_answers):
            skipped.append(Skipped(target=target, reason=Reason.NO_GOLD))
        else:
            eligible.append(target)
    return eligible, skipped


def _plan_call(
    target: Target, pool: DonorPool, splicer: Splicer, template: str, config: ProbeConfig
) -> CallPlan | Skipped:
    trajectory, call = target.trajectory, target.call
    spans = splicer.spans(trajectory, trajectory.calls[call].turn)
    donor = None
    if spans is not None and call in spans:
        donor = pool.choose(trajectory, call, config.seed, usable=splicer.usable)
    donor = donor or pool.choose(trajectory, call, config.seed)
    if donor is None:
        return Skipped(target=target, reason=Reason.NO_PLACEBO)
    try:
        contexts = contexts_of(trajectory, call, donor, splicer)
    except QueryError as error:
        return Skipped(target=target, reason=Reason.REFUSED, detail=str(error))
    gold = answers.continuations(trajectory.golden_answers, template, config.max_answers)
    return CallPlan(target=target, donor=donor, contexts=contexts, template=template, gold=gold)


def _count(plan: CallPlan, backend: Backend) -> int | Skipped:
    try:
        return sum(map(backend.count, plan.queries()))
    except QueryError as error:
        return skipped_by(plan.target, error)


def skipped_by(target: Target, error: QueryError) -> Skipped:
    """What is said of a call whose query failed."""
    reason = Reason.TOO_LONG if isinstance(error, ContextTooLongError) else Reason.REFUSED
    return Skipped(target=target, reason=reason, detail=str(error))

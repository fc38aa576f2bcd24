"""Which calls are probed, with which control result, and why others cannot be: settled before a model reads a token.

The sample takes one call of every question, in random order, then a second one, and so on, until the budget is spent:
questions with many calls do not crowd out the others. It depends on the seed and on the names of the calls, not on the
order of the files.

The control result of a call is a real result of another question's call of the same tool, of like length, without the
gold answer. It shows what "no result" cannot: a context also changes by being longer, by holding a result at all, and
by the turn that follows it. It depends on the seed, on the call and on the set of trajectories alone.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from typing import Final, NamedTuple

import numpy as np

from deltah.core.registry import check_number
from deltah.core.types import CallStatus, SegmentKind, StopReason, Trajectory
from deltah.errors import InvalidValueError
from deltah.probe.contexts import Contexts, LoggedCall, Splicer, contexts_of, joined
from deltah.probe.queries import Backend, ContextTooLongError, Query, QueryError, TextContinuation, question_key
from deltah.tasks.graders import extract_answer, normalize_answer

DOUBLED: Final = math.log(2.0)
"""Nats by which the log-probability of an answer rises when its probability doubles."""
MAX_RATIO: Final = 2.0
"""Largest factor between the lengths of control result and real result."""
NEAREST: Final = 16
"""Number of results, those nearest in length, that the control result is drawn from."""


class Reason(StrEnum):
    """Why a call was not probed."""

    UNANSWERED = "unanswered"
    NO_GOLD = "no_golden_answer"
    NO_CONTROL = "no_placebo"
    """No other question's result of the same tool is of like length and free of the golden answer."""
    TOO_LONG = "context_too_long"
    REFUSED = "refused"
    """The template or the server does not take the messages; `detail` says why."""


class Variant(StrEnum):
    """What stands where the call's result stood."""

    REAL = "real"
    NONE = "none"
    CONTROL = "placebo"
    """An unrelated result; the rows' field names call it placebo."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeConfig:
    """What is probed, and how it is judged."""

    max_calls: int | None = None
    """Budget of calls; None: all that can be probed."""
    seed: int = 0
    """Of the sample of calls and of their control results."""
    answer_template: str | None = None
    """Text with `{answer}` in it, or "sentence"; None: the form of the trajectory's own final answer."""
    max_answers: int = 4
    """The first golden answers of each trajectory that are tried."""
    threshold: float = DOUBLED
    """Gain in nats over each control from which a call is useful."""

    def __post_init__(self) -> None:
        template = self.answer_template
        if template is not None and template != SENTENCE and template.count(FIELD) != 1:
            raise InvalidValueError(
                f"the answer template {template!r} holds {FIELD} {template.count(FIELD)} times; expected once, "
                f"as in '<answer>{FIELD}</answer>', or {SENTENCE!r} for the trajectory's own sentence"
            )
        if self.max_calls is not None:
            check_number("max_calls", self.max_calls, 1)
        check_number("max_answers", self.max_answers, 1)
        check_number("threshold", self.threshold, 0.0, unit="number of nats")


class Skipped(NamedTuple):
    """A call that cannot be probed."""

    target: LoggedCall
    reason: Reason
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPlan:
    """What to ask about one call."""

    target: LoggedCall
    control: LoggedCall
    contexts: Contexts
    template: str
    gold: tuple[TextContinuation, ...]

    def context_queries(self, variant: Variant) -> tuple[list[Query], Query | None]:
        """Queries of one context: each golden answer, and the logged segment if there is one."""
        made = self.contexts
        context = {Variant.REAL: made.real, Variant.NONE: made.none, Variant.CONTROL: made.control}[variant]
        if context is None:
            return [], None
        segment = None if made.segment is None else joined(context, made.segment)
        return [joined(context, continuation) for continuation in self.gold], segment

    def queries(self) -> list[Query]:
        """All queries of the call."""
        pairs = map(self.context_queries, Variant)
        return [query for gold, segment in pairs for query in (*gold, *([segment] if segment else []))]


class Plan(NamedTuple):
    """What a probe will do."""

    calls: tuple[CallPlan, ...]
    skipped: tuple[Skipped, ...]
    n_left: int
    """Calls that could be probed but are over the budget."""


def make_plan(trajectories: Sequence[Trajectory], backend: Backend, config: ProbeConfig) -> Plan:
    """Choose calls, control results and texts."""
    pool, splicer = ControlPool(trajectories), Splicer(backend.view)
    forms = templates(trajectories, config.answer_template)
    template = {id(trajectory): form for trajectory, form in zip(trajectories, forms, strict=True)}
    targets = [LoggedCall(trajectory=t, index=i) for t in trajectories for i in range(t.n_calls)]
    skipped = [Skipped(target=target, reason=reason) for target in targets if (reason := _lacks(target)) is not None]
    eligible = [target for target in targets if _lacks(target) is None]
    calls, tried = list[CallPlan](), 0
    for target in sample(eligible, config.seed):
        if len(calls) == config.max_calls:
            break
        tried += 1
        planned = _plan_call(target, pool, splicer, backend, template[id(target.trajectory)], config)
        if isinstance(planned, CallPlan):
            calls.append(planned)
        else:
            skipped.append(planned)
    return Plan(calls=tuple(calls), skipped=tuple(skipped), n_left=len(eligible) - tried)


def sample(targets: Sequence[LoggedCall], seed: int) -> list[LoggedCall]:
    """All targets in the order in which a budget takes them: one of every question, then a second one, and so on."""
    by_question: dict[str, list[LoggedCall]] = defaultdict(list)
    for target in sorted(targets, key=lambda target: (target.trajectory.id, target.index)):
        by_question[question_key(target.trajectory)].append(target)
    rng = np.random.default_rng([seed, 1])
    questions = [by_question[key] for key in sorted(by_question)]
    shuffled = [[found[i] for i in rng.permutation(len(found))] for found in questions]
    order = [shuffled[i] for i in rng.permutation(len(shuffled))]
    return [target for turn in zip_longest(*order) for target in turn if target is not None]


def _lacks(target: LoggedCall) -> Reason | None:
    """Why nothing can be asked about a call, whatever the model; None if something can."""
    if target.call.result is None:
        return Reason.UNANSWERED
    return None if any(answer.strip() for answer in target.trajectory.golden_answers) else Reason.NO_GOLD


def _plan_call(
    target: LoggedCall, pool: ControlPool, splicer: Splicer, backend: Backend, template: str, config: ProbeConfig
) -> CallPlan | Skipped:
    control = None
    if splicer.spans(target) is not None:
        control = pool.choose(target, config.seed, usable=lambda found: splicer.body(found) is not None)
    control = control or pool.choose(target, config.seed)
    if control is None:
        return Skipped(target=target, reason=Reason.NO_CONTROL)
    gold = continuations(target.trajectory.golden_answers, template, config.max_answers)
    try:
        contexts = contexts_of(target, control, splicer)
        plan = CallPlan(target=target, control=control, contexts=contexts, template=template, gold=gold)
        for query in plan.queries():
            backend.count(query)
    except QueryError as error:
        return skipped_by(target, error)
    return plan


def skipped_by(target: LoggedCall, error: QueryError) -> Skipped:
    """A call whose query failed, with the reason."""
    reason = Reason.TOO_LONG if isinstance(error, ContextTooLongError) else Reason.REFUSED
    return Skipped(target=target, reason=reason, detail=str(error))


class ControlPool:
    """Every successful, non-empty result of a set of trajectories, by tool."""

    def __init__(self, trajectories: Iterable[Trajectory]) -> None:
        pool: dict[str, list[LoggedCall]] = defaultdict(list)
        for trajectory in sorted(trajectories, key=lambda t: (question_key(t), t.id)):
            for i, call in enumerate(trajectory.calls):
                if call.status is CallStatus.OK and (call.result or "").strip():
                    pool[call.name].append(LoggedCall(trajectory=trajectory, index=i))
        self._by_tool = {tool: sorted(found, key=_length) for tool, found in pool.items()}
        self._lengths = {tool: np.array(list(map(_length, found))) for tool, found in self._by_tool.items()}

    def choose(
        self, target: LoggedCall, seed: int, *, usable: Callable[[LoggedCall], bool] = lambda result: True
    ) -> LoggedCall | None:
        """Draw the control result of an answered call; None if no result will do."""
        key, asked = question_key(target.trajectory), _asked(target.trajectory)
        forbidden = [_words(answer) for answer in target.trajectory.golden_answers if answer.strip()]
        found: list[LoggedCall] = []
        seen = {_words(target.call.result or "")}
        for other in self._by_length(target.call.name, _length(target)):
            words = _words(other.call.result or "")
            # The same question may stand under another id.
            same = question_key(other.trajectory) == key or (asked is not None and _asked(other.trajectory) == asked)
            if not same and words not in seen and not any(gold in words for gold in forbidden) and usable(other):
                seen.add(words)
                found.append(other)
            if len(found) == NEAREST:
                break
        if not found:
            return None
        names = "\0".join((target.trajectory.id, target.call.id)).encode("utf-8", "replace")
        key_of_call = int.from_bytes(hashlib.sha256(names).digest()[:8], "big")
        return found[int(np.random.default_rng([seed, key_of_call]).integers(len(found)))]

    def _by_length(self, tool: str, length: int) -> Sequence[LoggedCall]:
        """Results of like length, nearest first; ties in a fixed order."""
        if tool not in self._by_tool:
            return ()
        lengths = self._lengths[tool]
        start = int(np.searchsorted(lengths, length / MAX_RATIO))
        stop = int(np.searchsorted(lengths, length * MAX_RATIO, "right"))
        order = np.argsort(np.abs(np.log(lengths[start:stop] / max(length, 1))), kind="stable")
        return [self._by_tool[tool][start + int(i)] for i in order]


def _length(logged: LoggedCall) -> int:
    return len(logged.call.result or "")


def _asked(trajectory: Trajectory) -> str | None:
    return None if trajectory.question is None else " ".join(trajectory.question.casefold().split())


def _words(text: str) -> str:
    """Normalised words between single spaces, one at either end, so that containment is of whole words."""
    return f" {normalize_answer(text) or ' '.join(text.lower().split())} "


FIELD = "{answer}"
"""Where the answer stands in a template."""
SENTENCE = "sentence"
"""In place of a template: the trajectory's own sentence."""
_READ_CHARS = 4000
"""Last characters in which the form of the answer is looked for."""
_TAGGED = re.compile(r"<answer>(\s*)(?=\S).*?(\s*)</answer>", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?]\s+|\n+")
_HASHES = re.compile(r"####(\s*)\S")


def template_of(text: str) -> str:
    r"""Template of the form in which a text gives its final answer; `{answer}` alone where it has no form."""
    text = text[-_READ_CHARS:]
    if tagged := list(_TAGGED.finditer(text)):
        return f"<answer>{tagged[-1][1]}{FIELD}{tagged[-1][2]}</answer>"
    if "\\boxed{" in text:
        return f"\\boxed{{{FIELD}}}"
    if hashed := list(_HASHES.finditer(text)):
        return f"####{hashed[-1][1]}{FIELD}"
    return FIELD


def sentence_of(text: str) -> str:
    """Template of the sentence in which a text first states its final answer; as `template_of` where it has none."""
    answer = extract_answer(text[-_READ_CHARS:]) or ""
    at = text.find(answer)
    start = max((m.end() for m in _SENTENCE_END.finditer(text, 0, max(at, 0))), default=0)
    opener = text[start : max(at, 0)]
    return f"{opener}{FIELD}" if opener.strip() and FIELD not in opener else template_of(text)


def templates(trajectories: Sequence[Trajectory], wanted: str | None) -> list[str]:
    """Template of each trajectory: the one wanted, or that of its own answer; without one, the most common form."""
    if wanted is not None and wanted != SENTENCE:
        return [wanted] * len(trajectories)
    texts = [final_text(trajectory) for trajectory in trajectories]
    forms = Counter(template_of(text) for text in texts if text is not None).most_common(1)
    common, own = forms[0][0] if forms else FIELD, template_of if wanted is None else sentence_of
    return [common if text is None else own(text) for text in texts]


def final_text(trajectory: Trajectory) -> str | None:
    """What the policy wrote in its last turn, if that turn made no call and was not cut off."""
    turns = [s.turn for s in trajectory.segments if s.kind.sampled]
    ends_open = trajectory.stop_reason in (StopReason.LENGTH, StopReason.UNANSWERED_CALL)
    if not turns or ends_open or any(call.turn == turns[-1] for call in trajectory.calls):
        return None
    last = (s for s in trajectory.segments if s.turn == turns[-1] and s.kind is SegmentKind.REASONING)
    return "".join(trajectory.segment_text(segment) or "" for segment in last) or None


def continuations(golden_answers: Sequence[str], template: str, limit: int) -> tuple[TextContinuation, ...]:
    """One continuation for each of the first `limit` distinct golden answers."""
    opener, _, closer = template.partition(FIELD)
    answers = list(dict.fromkeys(a.strip() for a in golden_answers if a.strip()))[:limit]
    return tuple(
        TextContinuation(text=f"{opener}{answer}{closer}", opener=len(opener), closer=len(closer)) for answer in answers
    )

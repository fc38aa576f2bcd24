r"""Waste that the text of a trajectory shows: calls that repeat a call, an error or what the context already holds.

No label, no model and no entropy is used; `verdict` sets the classes beside ΔH's label. The classes err towards
silence: a call is named waste only if nothing in the record speaks for it.

* **Evidence is local.** A call that may change the world (`deltah.calls.call_forms`; one that failed changes
  nothing, unless it ran code) and a new user message begin a new *epoch*, and only the same epoch counts as evidence.
  So a file read again after an edit, a test run again after a fix and a look-up that the user asked to repeat are no
  waste, whatever they return.
* **Only equal answers make duplicates.** If the same call ever gets two different answers within an epoch, its source
  is changing (polling, a feed, a clock): none of these calls is a duplicate or already in context. An answer that says
  "pending", shows nothing (an image) or only acknowledges ("ok") is no evidence either.
* **Retries.** A failed call is no duplicate; it is a repeated error only if the same call failed with the same error
  before and does not succeed later.
* **Pagination.** Calls whose numbers differ are different calls (`deltah.calls.call_forms`).

Context for "already in context" is what the model had read when it issued the call: user text and earlier results, not
the results of parallel calls and not what the policy itself wrote. Time is linear in the text but for one substring
search a call in its epoch's results, and at most `NEAR_WINDOW` comparisons of queries.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from deltah.calls.call_forms import (
    CallForm,
    Effect,
    ToolKind,
    call_form,
    decode_arguments,
    effect_of,
    same_code,
    similarity,
    tool_kind,
)
from deltah.calls.result_texts import AnswerKind, SeenText, answer_kind, flatten, passages, unused_results, user_text
from deltah.core.signals import Signal, Verdict
from deltah.core.types import ToolCall, Trajectory

NEAR_SIMILARITY: Final = 0.8
"""Jaccard similarity of query words from which two queries are near duplicates, if the result is in context too."""
NEAR_WINDOW: Final = 32
"""Queries that differ in nothing but words are compared with so many of their predecessors."""
MIN_PASSAGE_CHARS: Final = 40
"""A search result shorter than this is never said to be in context already."""
MIN_TEXT_CHARS: Final = 160
"""The same for other tools, whose results need not name what they are about."""


class Waste(StrEnum):
    """Why the text says that a call was not needed."""

    EXACT_DUPLICATE = "exact_duplicate"
    """The same tool with equal arguments gave the same answer before."""
    NEAR_DUPLICATE = "near_duplicate"
    """The same, with arguments that are equal once normalised; or a similar query whose result was in context."""
    RESULT_IN_CONTEXT = "result_in_context"
    """The whole result stood word for word in the context before the call was issued."""
    REPEATED_ERROR = "repeated_error"
    """The same call had failed with the same error before, and does not succeed later."""
    RESULT_UNUSED = "result_unused"
    """No new word of the result occurs in anything the policy wrote later: a hint, not a verdict."""


class WasteLevel(StrEnum):
    """What text and entropy together say of a call."""

    CERTIFIED = "certified"
    """A class other than the hint holds, and ΔH is certified not reduced."""
    LIKELY = "likely"
    """A class other than the hint holds; ΔH is undecided, undefined or was not measured."""
    HINT = "hint"
    """Only the hint holds."""
    NONE = "none"
    """No class holds, or the call reduced entropy."""


def waste_level(waste: frozenset[Waste], label: Verdict | None) -> WasteLevel:
    """Combine the classes of a call with the label of its round; None: the trajectory carries no entropies."""
    if not waste or label is Verdict.REDUCED:
        return WasteLevel.NONE
    if waste == {Waste.RESULT_UNUSED}:
        return WasteLevel.HINT
    return WasteLevel.CERTIFIED if label is Verdict.NOT_REDUCED else WasteLevel.LIKELY


def waste_levels(signal: Signal | None, waste: Sequence[frozenset[Waste]]) -> tuple[WasteLevel, ...]:
    """(C,) what text and entropy say of each call.

    Args:
        signal: None for a trajectory without entropies.
        waste: (C,) classes of each call.
    """
    labels = [None] * len(waste) if signal is None else signal.call_verdicts
    return tuple(waste_level(classes, label) for classes, label in zip(waste, labels, strict=True))


def waste_of_calls(trajectory: Trajectory) -> tuple[frozenset[Waste], ...]:
    """Classes of waste that hold for each call, in the order of `Trajectory.calls`; an empty set: none.

    A duplicate is the later one of two calls; so is the second of two equal calls of one turn.
    """
    if not trajectory.calls:
        return ()
    if trajectory.metadata.get("has_text") is False:
        return (frozenset(),) * trajectory.n_calls  # an export of numbers: there is nothing to compare
    heard = user_text(trajectory)
    evidence = _evidence(trajectory.calls, heard)
    for group in _same_calls(evidence):
        _mark_duplicates(group)
        _mark_repeated_errors(group)
    _mark_contained(evidence, heard)
    _mark_similar(evidence)
    for e, unused in zip(evidence, unused_results(trajectory), strict=True):
        if unused and e.kind is AnswerKind.CONTENT and e.effect is not Effect.CHANGES:
            e.waste.add(Waste.RESULT_UNUSED)
    return tuple(frozenset(e.waste) for e in evidence)


@dataclass(slots=True, eq=False)
class _Evidence:
    """One call with what is needed to judge it."""

    call: ToolCall
    form: CallForm
    effect: Effect
    kind: AnswerKind
    flat: str
    """Comparable form of the result; empty where there is none."""
    parts: tuple[str, ...]
    """What of the result must be found as one run: each passage of a search result, the whole of any other."""
    epoch: int
    changing: bool = False
    """Whether the same call got another answer in the same epoch."""
    waste: set[Waste] = field(default_factory=set)

    @property
    def answered(self) -> bool:
        """Whether its answer shows that a later equal one brings nothing."""
        shown = self.kind in (AnswerKind.CONTENT, AnswerKind.NOTHING_FOUND)
        return shown or (self.kind is AnswerKind.ACKNOWLEDGEMENT and self.effect is Effect.READS)


def _evidence(calls: Sequence[ToolCall], heard: dict[int, str]) -> list[_Evidence]:
    """Read every call once; an epoch begins at a call that changes something and after a user message."""
    evidence: list[_Evidence] = []
    messages = [turn for turn in reversed(heard) if turn > 0]
    epoch = 0
    for call in calls:
        arguments = decode_arguments(call.arguments)
        effect, kind = effect_of(call.name, arguments), answer_kind(call)
        # A tool that refused has changed nothing; code may have run half way.
        refused = kind is AnswerKind.FAILED and tool_kind(call.name) is not ToolKind.CODE
        begins = effect is Effect.CHANGES and not refused
        while messages and messages[-1] <= call.turn:
            messages.pop()
            begins = True
        epoch += begins
        form, flat = call_form(call.name, arguments), "" if call.result is None else flatten(call.result)
        evidence.append(
            _Evidence(
                call=call,
                form=form,
                effect=effect,
                kind=kind,
                flat=flat,
                parts=tuple(passages(call.result or "")) if form.searches and kind is AnswerKind.CONTENT else (flat,),
                epoch=epoch,
            )
        )
    return evidence


def _same_calls(evidence: Iterable[_Evidence]) -> list[list[_Evidence]]:
    """Groups of two or more calls that agree in epoch and loose form; `changing` is set on their members."""
    groups: dict[tuple[int, tuple[str, ...]], list[_Evidence]] = defaultdict(list)
    for e in evidence:
        groups[e.epoch, e.form.loose].append(e)
    repeated = [group for group in groups.values() if len(group) > 1]
    for group in repeated:
        answers = {e.flat for e in group if e.kind not in (AnswerKind.FAILED, AnswerKind.ABSENT)}
        for e in group:
            e.changing = len(answers) > 1
    return repeated


def _mark_duplicates(group: Sequence[_Evidence]) -> None:
    exact: set[str] = set()
    earlier: list[_Evidence] = []
    for e in group:
        if not e.answered or e.changing:
            continue
        if e.form.exact in exact:
            e.waste.add(Waste.EXACT_DUPLICATE)
            continue
        if any(_same_code(e.form, other.form) for other in earlier):
            e.waste.add(Waste.NEAR_DUPLICATE)
        exact.add(e.form.exact)
        earlier = [*earlier[: NEAR_WINDOW - 1], e]


def _same_code(a: CallForm, b: CallForm) -> bool:
    """Whether two calls of one loose form run the same code, as far as they run any."""
    return all(same_code(x, y) for x, y in zip(a.code, b.code, strict=True))


_VARYING = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|\d+")


def _mark_repeated_errors(group: Sequence[_Evidence]) -> None:
    answered = [i for i, e in enumerate(group) if e.answered or e.kind is AnswerKind.ACKNOWLEDGEMENT]
    last_success = answered[-1] if answered else -1
    seen: list[tuple[str, CallForm]] = []
    for i, e in enumerate(group):
        if e.kind is not AnswerKind.FAILED:
            continue
        error = _VARYING.sub("#", e.flat.casefold())
        if any(error == text and _same_code(e.form, form) for text, form in seen):
            if i > last_success:
                e.waste.add(Waste.REPEATED_ERROR)
        else:
            seen = [*seen[: NEAR_WINDOW - 1], (error, e.form)]


def _mark_contained(evidence: Sequence[_Evidence], heard: dict[int, str]) -> None:
    """Mark results whose every passage stood in the context of their epoch before their turn."""
    seen, epoch, turn = SeenText(), -1, -1
    waiting: list[_Evidence] = []
    for e in evidence:
        if e.epoch != epoch:
            seen, waiting = SeenText(), []
            if e.effect is not Effect.CHANGES:
                for text in (text for t, text in heard.items() if turn < t <= e.call.turn):
                    seen.add(flatten(text))
        elif e.call.turn != turn:
            for earlier in waiting:
                seen.add(earlier.flat, earlier.parts)
            waiting = []
        epoch, turn = e.epoch, e.call.turn
        waiting.append(e)
        if _may_be_contained(e) and all(seen.holds(part) for part in e.parts):
            e.waste.add(Waste.RESULT_IN_CONTEXT)


def _may_be_contained(e: _Evidence) -> bool:
    enough = MIN_PASSAGE_CHARS if e.form.searches else MIN_TEXT_CHARS
    return (
        e.kind is AnswerKind.CONTENT and e.effect is not Effect.CHANGES and not e.changing and len(e.flat) - 2 >= enough
    )


def _mark_similar(evidence: Sequence[_Evidence]) -> None:
    """Mark calls whose result was in context and whose query resembles an earlier one of the epoch."""
    buckets: dict[tuple[int, tuple[str, ...]], list[CallForm]] = defaultdict(list)
    for e in evidence:
        if not e.form.searches:
            continue
        earlier = buckets[e.epoch, e.form.rest]
        judged = Waste.RESULT_IN_CONTEXT in e.waste and Waste.EXACT_DUPLICATE not in e.waste
        if judged and any(similarity(e.form, form) >= NEAR_SIMILARITY for form in earlier[-NEAR_WINDOW:]):
            e.waste.add(Waste.NEAR_DUPLICATE)
        earlier.append(e.form)

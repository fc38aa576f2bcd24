"""Waste that the text of a trajectory shows: calls that repeat a call, an error or what the context already holds.

No label, model or entropy is used, and what is in doubt is no waste; docs/waste.md states the rules. A call that may
change the world and a new user message begin a new *epoch*, and only calls of one epoch are evidence about each other.
Time is linear in the text but for one substring search per call in its epoch's results and `NEAR_WINDOW` comparisons.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import pairwise, product, repeat
from operator import itemgetter
from string import ascii_lowercase
from typing import Final

from deltah.calls.evidence import CallText, flatten, read_call, same_code, split_words, tool_of
from deltah.core.signals import Signal, Verdict
from deltah.core.types import SegmentKind, ToolCall, Trajectory
from deltah.tools.search import STOP_WORDS

NEAR_SIMILARITY: Final = 0.8
"""Jaccard similarity of query words from which two queries are near duplicates, if the result is in context too."""
NEAR_WINDOW: Final = 32
"""Queries that differ in nothing but words are compared with so many of their predecessors."""
MIN_PASSAGE_CHARS: Final = 40
"""A shorter search result is never said to be in context already."""
MIN_TEXT_CHARS: Final = 160
"""The same for other tools."""


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
    """What text and entropy together say about a call."""

    CERTIFIED = "certified"
    """A class other than the hint holds, and ΔH is certified not reduced."""
    LIKELY = "likely"
    """A class other than the hint holds; ΔH is undecided, undefined or was not measured."""
    HINT = "hint"
    """Only the hint holds."""
    NONE = "none"
    """No class holds, or the call reduced entropy."""


def waste_level(waste: frozenset[Waste], verdict: Verdict | None) -> WasteLevel:
    """Combine the classes of a call with its verdict; None: the trajectory carries no entropies."""
    if not waste or verdict is Verdict.REDUCED:
        return WasteLevel.NONE
    if waste == {Waste.RESULT_UNUSED}:
        return WasteLevel.HINT
    return WasteLevel.CERTIFIED if verdict is Verdict.NOT_REDUCED else WasteLevel.LIKELY


def waste_levels(signal: Signal | None, waste: Sequence[frozenset[Waste]]) -> tuple[WasteLevel, ...]:
    """(C,) what text and entropy say about each call, given its classes; the signal is None without entropies."""
    verdicts = [None] * len(waste) if signal is None else signal.call_verdicts
    return tuple(waste_level(classes, verdict) for classes, verdict in zip(waste, verdicts, strict=True))


def waste_of_calls(trajectory: Trajectory) -> tuple[frozenset[Waste], ...]:
    """Classes of waste that hold for each call, in the order of `Trajectory.calls`; an empty set: none.

    A duplicate is the later one of two calls; so is the second of two equal calls of one turn.
    """
    if not trajectory.calls:
        return ()
    if trajectory.metadata.get("has_text") is False:
        return (frozenset(),) * trajectory.n_calls  # an export of numbers: there is nothing to compare
    heard = _user_text(trajectory)
    evidence = _evidence(trajectory.calls, heard)
    groups: dict[tuple[int, tuple[str, ...]], list[CallText]] = defaultdict(list)
    for e in evidence:
        groups[e.epoch, e.loose].append(e)
    for group in (group for group in groups.values() if len(group) > 1):
        answers = {e.flat for e in group if e.kind not in ("failed", "absent")}
        for e in group:
            e.changing = len(answers) > 1
        _mark_duplicates(group)
        _mark_repeated_errors(group)
    _mark_contained(evidence, heard)
    _mark_similar(evidence)
    for e, unused in zip(evidence, _unused_results(trajectory, heard), strict=True):
        if unused and e.kind == "content" and e.effect != "changes":
            e.waste.add(Waste.RESULT_UNUSED)
    return tuple(frozenset(map(Waste, e.waste)) for e in evidence)


def _evidence(calls: Iterable[ToolCall], heard: Iterable[int]) -> list[CallText]:
    """Read every call once; an epoch begins at a call that changes something and after a user message."""
    evidence = [read_call(call) for call in calls]
    messages = [turn for turn in heard if turn > 0][::-1]
    epoch = 0
    for call, e in zip(calls, evidence, strict=True):
        # A tool that refused has changed nothing; code may have run half way.
        begins = e.effect == "changes" and not (e.kind == "failed" and tool_of(call.name).kind != "code")
        while messages and messages[-1] <= call.turn:
            messages.pop()
            begins = True
        epoch += begins
        e.epoch = epoch
    return evidence


def _mark_duplicates(group: Sequence[CallText]) -> None:
    exact: set[str] = set()
    earlier: list[CallText] = []
    for e in group:
        if not e.answered or e.changing:
            continue
        if e.exact in exact:
            e.waste.add(Waste.EXACT_DUPLICATE)
            continue
        if any(same_code(e, other) for other in earlier):
            e.waste.add(Waste.NEAR_DUPLICATE)
        exact.add(e.exact)
        earlier = [*earlier[: NEAR_WINDOW - 1], e]


_VARYING = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|\d+")


def _mark_repeated_errors(group: Sequence[CallText]) -> None:
    last_success = max((i for i, e in enumerate(group) if e.answered or e.kind == "acknowledgement"), default=-1)
    seen: list[tuple[str, CallText]] = []
    for i, e in enumerate(group):
        if e.kind != "failed":
            continue
        error = _VARYING.sub("#", e.flat.casefold())
        if any(error == text and same_code(e, other) for text, other in seen):
            if i > last_success:
                e.waste.add(Waste.REPEATED_ERROR)
        else:
            seen = [*seen[: NEAR_WINDOW - 1], (error, e)]


def _mark_contained(evidence: Sequence[CallText], heard: Mapping[int, str]) -> None:
    """Mark results whose every passage stood in the context of their epoch before their turn."""
    texts, seen_parts = set[str](), set[str]()
    epoch, turn = -1, -1
    waiting: list[CallText] = []
    for e in evidence:
        if e.epoch != epoch:
            texts, seen_parts, waiting = set(), set(), []
            if e.effect != "changes":
                texts.update(flatten(text) for t, text in heard.items() if turn < t <= e.turn)
        elif e.turn != turn:
            texts.update(earlier.flat for earlier in waiting)
            seen_parts.update(part for earlier in waiting for part in earlier.parts)
            waiting = []
        epoch, turn = e.epoch, e.turn
        waiting.append(e)
        enough = len(e.flat) - 2 >= (MIN_PASSAGE_CHARS if e.query else MIN_TEXT_CHARS)
        if e.kind != "content" or e.effect == "changes" or e.changing or not enough:
            continue
        if all(part in seen_parts or part in texts or any(part in text for text in texts) for part in e.parts):
            e.waste.add(Waste.RESULT_IN_CONTEXT)


def _mark_similar(evidence: Sequence[CallText]) -> None:
    """Mark calls whose result was in context and whose query resembles an earlier one of the epoch."""
    buckets: dict[tuple[int, tuple[str, ...]], list[CallText]] = defaultdict(list)
    for e in evidence:
        if not e.query:
            continue
        earlier = buckets[e.epoch, e.rest]
        if Waste.RESULT_IN_CONTEXT in e.waste and Waste.EXACT_DUPLICATE not in e.waste:
            pairs = ((len(e.query & other.query), len(e.query | other.query)) for other in earlier[-NEAR_WINDOW:])
            if any(both / either >= NEAR_SIMILARITY for both, either in pairs):
                e.waste.add(Waste.NEAR_DUPLICATE)
        earlier.append(e)


_TEMPLATE = re.compile(r"<[^<>]{0,40}>|\b(?:system|user|assistant|tool)\b|[^\w<]+|[_<]")


def _user_text(trajectory: Trajectory) -> dict[int, str]:
    """System and user text by the turn it precedes, the question included, in order; empty where the record lacks it.

    After turn 0, a prompt of template tokens and role names alone is no message.
    """
    found = {0: trajectory.question} if trajectory.question else {}
    for segment in trajectory.segments:
        if segment.kind is not SegmentKind.PROMPT:
            continue
        text = trajectory.segment_text(segment)
        if text is None or segment.turn == 0 or _TEMPLATE.sub("", text):
            found[segment.turn] = f"{found.get(segment.turn, '')}\n{text or ''}"
    return found


def _policy_text(trajectory: Trajectory) -> dict[int, str | None]:
    """Reasoning and calls (or their arguments) by the turn that wrote them; None where the record lacks some text."""
    parts: dict[int, list[str | None]] = defaultdict(list)
    spelled = set()
    for segment in trajectory.segments:
        if segment.kind in (SegmentKind.REASONING, SegmentKind.CALL):
            parts[segment.turn].append(text := trajectory.segment_text(segment))
            if text and segment.kind is SegmentKind.CALL:
                spelled.add(segment.turn)
    for call in trajectory.calls:
        if call.turn not in spelled:
            parts[call.turn].append(call.arguments)
    return {t: None if None in texts else "\n".join(map(str, texts)) for t, texts in parts.items()}


STEM_LETTERS: Final = 6
_FRACTION = re.compile(r"(?:\b\d)?\.\d+")
"""Decimals: 1023.5 becomes 1023, and 0.5 nothing."""
_DECIMAL_POINT = re.compile(r"\.\d")
_THOUSANDS = re.compile(r",(?=\d{3}\b)")
_SHORT_WORDS: Final = frozenset(map("".join, product(ascii_lowercase, ["", *ascii_lowercase])))
"""Of one or two letters: any text holds some."""
_IGNORED: Final = _SHORT_WORDS.union(word[:STEM_LETTERS] for word in STOP_WORDS)
_stem = itemgetter(slice(STEM_LETTERS))


def _unused_results(trajectory: Trajectory, user_text: Mapping[int, str]) -> list[bool]:
    """Whether each call's result brought new words, none of which the policy wrote later.

    Nor may it have written two neighbouring words of the result that user text and the call lack: a fact that the
    result confirmed. False also where that cannot be said: no new word, nothing written later, or text that is missing.
    """
    calls, written = trajectory.calls, _policy_text(trajectory)
    heard = {turn: _words(text) for turn, text in user_text.items()}
    results = [_words(call.result or "") for call in calls]
    later = {turn: _words(text or "") for turn, text in sorted(written.items()) if turn > calls[0].turn}
    last_turn = max(written, default=-1)
    later[last_turn + 1] = _words(trajectory.prediction or "")  # the answer that was graded is the very last text
    unknown = max((turn for turn, text in written.items() if text is None), default=-1)
    last_word = _turns(later.items())
    unused = [
        bool(new) and unknown <= call.turn < last_turn and not any(last_word.get(word, -1) > call.turn for word in new)
        for call, new in zip(calls, _new_words(calls, results, heard), strict=True)
    ]
    if any(unused):
        last_pair = _turns((turn, _pairs(words)) for turn, words in later.items())
        first_heard = _turns((turn, _pairs(heard[turn])) for turn in sorted(heard, reverse=True))
        for i in (i for i, silent in enumerate(unused) if silent):
            turn = calls[i].turn
            brought = _pairs(results[i]) - _pairs(_words(calls[i].arguments))
            confirmed = (last_pair.get(pair, -1) > turn and first_heard.get(pair, turn + 1) > turn for pair in brought)
            unused[i] = not any(confirmed)
    return unused


def _turns(texts: Iterable[tuple[int, Iterable[Hashable]]]) -> dict[Hashable, int]:
    """Turn of the last of the texts that holds an item."""
    found: dict[Hashable, int] = {}
    for turn, items in texts:
        found.update(zip(items, repeat(turn), strict=False))
    return found


def _new_words(
    calls: Sequence[ToolCall], results: Sequence[list[str]], heard: Mapping[int, list[str]]
) -> list[set[str]]:
    """Words that each call's result brought in; results of one turn do not see each other."""
    messages = list(heard.items())[::-1]
    seen, waiting = set(_IGNORED), set[str]()
    brought: list[set[str]] = []
    turn = -1
    for call, result in zip(calls, results, strict=True):
        if call.turn != turn:
            seen |= waiting
            waiting, turn = set(), call.turn
            while messages and messages[-1][0] <= turn:
                seen.update(messages.pop()[1])
        new = set(result) - seen
        waiting |= new
        if new:
            new.difference_update(_words(call.arguments))
        brought.append(new)
    return brought


def _pairs(words: Iterable[str]) -> set[tuple[str, str]]:
    """Neighbouring content words."""
    return set(pairwise(word for word in words if word not in _IGNORED))


def _words(text: str) -> list[str]:
    """Words of a text in order, lower case and shortened, without decimals."""
    plain = text if text.isascii() else text.casefold()
    if "." in plain and _DECIMAL_POINT.search(plain):
        plain = _FRACTION.sub("", plain)
    if "," in plain:
        plain = _THOUSANDS.sub("", plain)
    return list(map(_stem, split_words(plain)))

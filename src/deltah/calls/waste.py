"""Facts about each call, found in the text of its trajectory; docs/waste.md states the rules.

Two calls are equal if they name the same tool with arguments that are equal as JSON: key order and white space between
tokens are free, and case, quotes and types are not. No name of a tool or argument has a meaning here, and no label,
model or entropy is used. Time is linear in the text but for one substring search per call in the results before it, and
`NEAR_WINDOW` comparisons.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import pairwise, product, repeat
from math import inf
from operator import itemgetter
from string import ascii_lowercase
from typing import Final

from deltah.calls.evidence import CallFacts, CallText, Waste
from deltah.core.failures import is_transient
from deltah.core.types import UNKNOWN_ARGUMENTS, CallStatus, SegmentKind, ToolCall, Trajectory
from deltah.tools.search import STOP_WORDS

NEAR_SIMILARITY: Final = 0.8
"""Jaccard similarity of the words of two calls from which they are near duplicates, if the result is in context too."""
NEAR_WINDOW: Final = 32
"""Calls that differ in nothing but words are compared with so many of their predecessors."""
MIN_NEW_WORDS: Final = 3
"""A result that brings fewer words is never said to be unused: it may only say that all went well."""
MIN_PASSAGE_CHARS: Final = 40
"""A shorter passage of a result is not looked for on its own."""
MIN_TEXT_CHARS: Final = 160
"""A result without passages is not looked for in the context if it is shorter."""
_JSON = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))
_MEDIUM = re.compile(r"\[(?:image|image_url|input_image|audio|input_audio|file|video|document|resource)\]")
_VOLATILE_FIELD = re.compile(
    r'"(?:took|took_ms|request_?id|(?:search|query|response|elapsed)_?(?:time|ms)\w*)"\s*:\s*(?:"[^"]*"|[-+\d.eE]+)\s*,?'
)
"""Fields of an answer that say how it was made; they differ from run to run."""
_VARYING = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|\d+")
_JSON_START = re.compile(r"\s*[\[{]\s*[\[{\"\]}]")
_RECORD_BORDER = re.compile(r"\}\s*,\s*\{")
_BLANK_LINE = re.compile(r"\n\s*\n")
_ORDINAL = re.compile(
    r"\A(?:(?:doc(?:ument)?|result|source|passage)\s*[\[(#]?\d{1,3}|[\[(#]?\d{1,3}[\]).:]|[-*•])[\]).:]*\s*",
    re.IGNORECASE,
)
_WORD = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")
_LOWER_OR_SPACE: Final = bytes(ord(chr(code).lower()) if chr(code).isalnum() else 32 for code in range(128)).ljust(256)


def facts_of_calls(trajectory: Trajectory, limits_s: Mapping[str, float] | None = None) -> tuple[CallFacts, ...]:
    """(C,) facts about each call, in the order of `Trajectory.calls`; `limits_s` are time limits by tool.

    Of two equal calls the later one repeats the earlier; so does the second of two equal calls of one turn.
    """
    calls = trajectory.calls
    if not calls or trajectory.metadata.get("has_text") is False:  # an export of numbers: there is nothing to compare
        return (CallFacts(),) * len(calls)
    limits = limits_s or {}
    texts, heard = [_read_call(call, limits.get(call.name, inf)) for call in calls], _user_text(trajectory)
    hints = _Hints(texts, trajectory, heard)
    found, latest, successes = list[CallFacts](), dict[tuple[str, str], int](), _last_successes(texts)
    places, messages = _places(texts), sorted(turn for turn in heard if turn > 0)
    for i, text in enumerate(texts):
        key = (text.name, text.arguments)
        parsed = text.name.strip() and text.arguments != UNKNOWN_ARGUMENTS  # what was not parsed equals nothing
        waste, j = hints.of(i), latest.get(key) if parsed else None
        latest[key] = i
        if j is None:
            found.append(CallFacts(waste=frozenset(waste), hashes=_hashes(text)))
            continue
        earlier = texts[j]
        known = text.answer is not None and earlier.answer is not None
        same = (text.failed, text.answer) == (earlier.failed, earlier.answer) if known else None
        if same and not (text.failed and successes.get(key, -1) > i):
            waste.add(Waste.REPEATED_ERROR if text.failed else Waste.EXACT_DUPLICATE)
        found.append(
            CallFacts(
                waste=frozenset(waste),
                repeats=j,
                same_result=same,
                between=_between(places, texts, j, i),
                message_between=bisect_right(messages, earlier.turn) < bisect_right(messages, text.turn),
                hashes=_hashes(text),
            )
        )
    return tuple(found)


def _last_successes(texts: Iterable[CallText]) -> dict[tuple[str, str], int]:
    """Place of the last success of each call."""
    answered = ((i, text) for i, text in enumerate(texts) if text.flat and not text.failed)
    return {(text.name, text.arguments): i for i, text in answered}


def _places(texts: Iterable[CallText]) -> dict[str, list[int]]:
    """Places of the calls of each tool."""
    places: dict[str, list[int]] = defaultdict(list)
    for i, text in enumerate(texts):
        places[text.name].append(i)
    return places


def _between(
    places: Mapping[str, Sequence[int]], texts: Sequence[CallText], first: int, second: int
) -> tuple[str, ...]:
    """Tools called from the turn of one call to that of another, the two left out: calls of a turn run in any order."""
    start = bisect_left(texts, texts[first].turn, key=lambda text: text.turn)
    stop = bisect_right(texts, texts[second].turn, key=lambda text: text.turn)
    counts = {name: bisect_left(at, stop) - bisect_left(at, start) for name, at in places.items()}
    counts[texts[first].name] -= 2
    return tuple(sorted(name for name, n in counts.items() if n))


class _Hints:
    """Hints about the calls of a trajectory, asked for in order."""

    def __init__(self, texts: Sequence[CallText], trajectory: Trajectory, heard: Mapping[int, str]) -> None:
        self._texts, self._calls = texts, trajectory.calls
        self._heard = sorted(heard.items(), reverse=True)
        self._contexts, self._parts = list[str](), set[str]()
        self._waiting: list[tuple[str, list[str]]] = []
        """Forms of the results of this turn, which its calls do not know."""
        self._turn = -1
        self._words: dict[tuple[str, frozenset[str]], list[frozenset[str]]] = defaultdict(list)
        unused = _unused_results(trajectory, heard)
        self._unused = [silent and not text.failed for silent, text in zip(unused, texts, strict=True)]

    def of(self, i: int) -> set[Waste]:
        """Hints about one call, the next."""
        call, text = self._calls[i], self._texts[i]
        found = {Waste.RESULT_UNUSED} if self._unused[i] else set[Waste]()
        self._enter(text.turn)
        parts = _parts_of(call.result or "")
        known = bool(parts) and not text.failed and all(map(self._is_known, parts))
        self._waiting.append((_context_form(call.result or ""), parts))
        if known:
            found.add(Waste.RESULT_IN_CONTEXT)
        words = frozenset(split_words(text.arguments))
        earlier = self._words[call.name, frozenset(word for word in words if not word.isalpha())]
        if known and any(_similar(words, other) for other in earlier[-NEAR_WINDOW:]):
            found.add(Waste.NEAR_DUPLICATE)
        earlier.append(words)
        return found

    def _enter(self, turn: int) -> None:
        if turn == self._turn:
            return
        self._turn = turn
        while self._heard and self._heard[-1][0] <= turn:
            self._contexts.append(_context_form(self._heard.pop()[1]))
        for whole, parts in self._waiting:
            self._contexts.append(whole)
            self._parts.update(parts)
        self._waiting = []

    def _is_known(self, part: str) -> bool:
        return part in self._parts or any(part in context for context in self._contexts if len(part) <= len(context))


def _similar(a: frozenset[str], b: frozenset[str]) -> bool:
    """Whether two sets of words differ, but little."""
    return a != b and bool(a) and len(a & b) >= NEAR_SIMILARITY * len(a | b)


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
    """Whether each call's result brought `MIN_NEW_WORDS` new words or more, none of which the policy wrote later.

    Nor may it have written two neighbouring words of the result that user text and the call lack: a fact that the
    result confirmed. False also where that cannot be said: nothing written later, or text that is missing.
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
        len(new) >= MIN_NEW_WORDS
        and unknown <= call.turn < last_turn
        and not any(last_word.get(word, -1) > call.turn for word in new)
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


def _hashes(text: CallText) -> tuple[int, int | None, int | None]:
    """64-bit hashes of a call, its result, and the words of the result that the call lacks."""
    same = _hash(f"{text.name}\0{text.arguments}")
    if text.answer is None or text.transient:
        return same, None, None
    news = sorted(set(split_words(text.flat)).difference(split_words(text.arguments)))
    return same, _hash(f"{text.failed}\0{text.answer}"), _hash(" ".join(news))


def _read_call(call: ToolCall, limit_s: float = inf) -> CallText:
    """Read one call; a failure after its time limit may pass."""
    failed, text = call.status is CallStatus.ERROR, call.result
    flat = "" if text is None else flatten(text)
    answer = None if text is None or _MEDIUM.search(text) else flat
    return CallText(
        name=call.name,
        turn=call.turn,
        arguments=_canonical(call.arguments),
        answer=_VARYING.sub("#", answer.casefold()) if failed and answer is not None else answer,
        failed=failed,
        transient=failed and (is_transient(text or "") or (call.duration_s or 0.0) >= limit_s),
        flat=flat,
    )


def _canonical(arguments: str) -> str:
    """Arguments as JSON in one spelling; text that is none without outer white space."""
    try:
        return _JSON.encode(json.loads(arguments)) if arguments.strip() else "{}"
    except (ValueError, RecursionError):
        return arguments.strip()


def split_words(text: str) -> list[str]:
    """Runs of letters and digits in order and lower case; single characters of languages without spaces."""
    if not text.isascii():
        return _WORD.findall(text.casefold())
    return text.encode("ascii").translate(_LOWER_OR_SPACE).decode("ascii").split()  # several times faster


def flatten(text: str) -> str:
    """Comparable form of a text: white space is single spaces, fields that vary by run are left out."""
    return _flat(_without_volatile_fields(text))


def _parts_of(text: str) -> list[str]:
    """Passages of a result, flattened; the whole where they are short, and nothing where that is."""
    stripped = _without_volatile_fields(text).strip()
    if _JSON_START.match(stripped):
        parts = _RECORD_BORDER.split(stripped.strip("[] \n"))
    else:
        blocks = _BLANK_LINE.split(stripped)
        parts = [_ORDINAL.sub("", part.lstrip(), count=1) for part in (blocks if blocks[1:] else stripped.split("\n"))]
    flat = [part for part in map(_without_brackets, parts) if part.strip()]
    if len(flat) > 1 and all(len(part) >= MIN_PASSAGE_CHARS for part in flat):
        return flat
    whole = _without_brackets(stripped)
    return [whole] if len(whole) >= MIN_TEXT_CHARS else []


def _context_form(text: str) -> str:
    """Form of a text in which `_parts_of` are found."""
    return _without_brackets(_without_volatile_fields(text))


def _without_volatile_fields(text: str) -> str:
    return _VOLATILE_FIELD.sub("", text) if '"' in text and _JSON_START.match(text) else text


def _without_brackets(text: str) -> str:
    for bracket in "[]{}":
        text = text.replace(bracket, " ")
    return _flat(text)


def _flat(text: str) -> str:
    return f" {' '.join(text.split())} "


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")

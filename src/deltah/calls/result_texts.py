"""Texts of a trajectory: what kind of answer a result is, whether a text holds it already, whether it was used later.

`flatten` makes texts comparable: brackets and white space become single spaces, fields of search engines that differ
from run to run (score, time taken, request id) are left out. Everything else counts, case and punctuation too, so that
a result is *in* a text only where it stands there word for word.

`unused_results` asks whether words that a result brought into a trajectory occur in what the policy wrote later. A
*new* word of a result is one that no user text, no earlier result and not the call itself holds. A result is unused if
it brought new words, the policy later wrote none of them, and also no two neighbouring words of the result that user
text and the call itself do not hold (a fact that the context held already and the result confirmed). Words are compared
by their first six letters or digits, languages without spaces by single characters; stop words, words of one or two
letters and decimals do not count. All of this makes "used" easier to say than "unused", and still a paraphrase, a
translation or a number computed from the result leaves no trace: a hint, not a finding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import cached_property
from itertools import pairwise, product, repeat
from operator import itemgetter
from string import ascii_lowercase
from typing import Final, TypeAlias, TypeVar

from deltah.calls.call_forms import word_set
from deltah.core.types import CallStatus, SegmentKind, ToolCall, Trajectory
from deltah.tools.search import STOP_WORDS

_WRITTEN: Final = (SegmentKind.REASONING, SegmentKind.CALL)
_TEMPLATE = re.compile(r"<[^<>]{0,40}>|\b(?:system|user|assistant|tool)\b|[^\w<]+|[_<]")

_LOWER_OR_SPACE: Final = bytes(ord(chr(code).lower()) if chr(code).isalnum() else 32 for code in range(128)).ljust(256)


def ascii_words(text: str) -> list[str]:
    """Runs of letters and digits of an ASCII text, in order and lower case, several times faster than by a pattern."""
    return text.encode("ascii").translate(_LOWER_OR_SPACE).decode("ascii").split()


def user_text(trajectory: Trajectory) -> dict[int, str]:
    """System and user text by the turn it precedes, the question included, in order.

    After turn 0, a prompt that holds nothing but template tokens and role names is no message; a message whose text the
    record lacks is an empty one.
    """
    found = {0: trajectory.question} if trajectory.question else {}
    for segment in trajectory.segments:
        if segment.kind is not SegmentKind.PROMPT:
            continue
        text = trajectory.segment_text(segment)
        if text is None or segment.turn == 0 or _TEMPLATE.sub("", text):
            found[segment.turn] = f"{found.get(segment.turn, '')}\n{text or ''}"
    return found


def policy_text(trajectory: Trajectory) -> dict[int, str | None]:
    """Reasoning and calls by the turn that wrote them; None for a turn of which the record lacks some text.

    Where no text of a turn spells its calls, their arguments stand in for it.
    """
    parts: dict[int, list[str | None]] = {}
    spelled = set()
    for segment in trajectory.segments:
        if segment.kind in _WRITTEN:
            parts.setdefault(segment.turn, []).append(text := trajectory.segment_text(segment))
            if text and segment.kind is SegmentKind.CALL:
                spelled.add(segment.turn)
    for call in trajectory.calls:
        if call.turn not in spelled:
            parts.setdefault(call.turn, []).append(call.arguments)
    return {turn: _joined(texts) for turn, texts in sorted(parts.items())}


def _joined(texts: list[str | None]) -> str | None:
    known = [text for text in texts if text is not None]
    return "\n".join(known) if len(known) == len(texts) else None


SHORT_CHARS: Final = 400
"""Only answers up to this length are read as a message (pending, nothing found) instead of as content."""


class AnswerKind(StrEnum):
    """What the text of a result is good for as evidence."""

    CONTENT = "content"
    NOTHING_FOUND = "nothing_found"
    """The tool looked and found nothing: an answer, but the same words answer any query."""
    ACKNOWLEDGEMENT = "acknowledgement"
    """"ok", "done", an empty text: says nothing about what happened."""
    PENDING = "pending"
    """Not ready yet: whoever polls has to call again."""
    OPAQUE = "opaque"
    """Holds an image or another medium that the log does not show."""
    FAILED = "failed"
    """An error text or a traceback."""
    ABSENT = "absent"
    """No result followed."""


_VOLATILE_FIELD = re.compile(
    r'"(?:_?score|relevance_score|similarity_score|took|took_ms|request_?id|(?:search|query|response|elapsed)_?(?:time|ms)\w*)"'
    r'\s*:\s*(?:"[^"]*"|[-+\d.eE]+)\s*,?'
)
_JSON_START = re.compile(r"\s*[\[{]\s*[\[{\"\]}]")
_RECORD_BORDER = re.compile(r"\}\s*,\s*\{")
_BLANK_LINE = re.compile(r"\n\s*\n")
_ORDINAL = re.compile(
    r"\A(?:(?:doc(?:ument)?|result|source|passage)\s*[\[(#]?\d{1,3}|[\[(#]?\d{1,3}[\]).:]|[-*•])[\]).:]*\s*",
    re.IGNORECASE,
)
_TRACEBACK = re.compile(r"\s*(?:Traceback \(most recent call last\)|[\w.]*(?:Error|Exception)(?::|\s*\Z))")
_MEDIUM = re.compile(r"\[(?:image|image_url|input_image|audio|input_audio|file|video|document|resource)\]")
_NOTHING = re.compile(
    r"\b(?:no|0|zero)\s+(?:\w+\s+){0,2}(?:results?|matches|match|documents?|hits?|records?|items?|entries|data|files?|rows?"
    r"|information|pages?)\b|\bnothing\b|\bnot found\b|\bcould ?n[o']t find\b|\bdid(?: not|n't) match\b"
    r"|\bunable to\b|\bdoes(?: not|n't) exist\b"
)
_PENDING = re.compile(
    r"\b(?:pending|queued|in[ _-]progress|processing|not (?:yet )?(?:ready|finished|completed?|available yet)"
    r"|still (?:running|working|loading|building|waiting)|no new output|try again (?:later|in)"
    r"|\d{1,3} ?% (?:completed?|done))\b"
    r'|"(?:status|state|phase)"\s*:\s*"(?:running|waiting|building|loading|start\w*|initiali\w+|scheduled|created|active)'
)
_PENDING_HINTS: Final = word_set(
    """active again available building complete completed created done finished initialized initializing initialising
    loading new pending processing progress queued ready running scheduled start started starting still waiting"""
)
_PENDING_ALONE: Final = word_set("building loading running scheduled starting waiting")
_NOTHING_HINTS: Final = word_set("0 no zero nothing found find match unable exist")
_PENDING_WORDS_AT_MOST: Final = 6
_DONE: Final = word_set(
    """
    accepted added applied clicked complete completed created deleted done executed finished inserted noted null
    none ok okay pressed removed replaced saved scrolled sent set submitted success successful successfully
    typed updated written
    """
)
_AROUND_DONE: Final = word_set(
    """
    0 1 200 a action all and been code command exit file has have in is it item message no operation output
    record request result return returned returncode status stderr stdout task the to true was with without your
    """
)
_ACKNOWLEDGING: Final = _DONE | _AROUND_DONE
_WORD = re.compile(r"[^\W_]+")


def answer_kind(call: ToolCall) -> AnswerKind:
    """Classify the result of a call; a long text is content unless it is a failure."""
    text = call.result
    if text is None:
        return AnswerKind.ABSENT
    if call.status is CallStatus.ERROR or _TRACEBACK.match(text):
        return AnswerKind.FAILED
    if "[" in text and _MEDIUM.search(text):
        return AnswerKind.OPAQUE
    return _message_kind(text) if len(text) <= SHORT_CHARS else AnswerKind.CONTENT


def _message_kind(text: str) -> AnswerKind:
    lower = text.lower()
    words = ascii_words(lower) if lower.isascii() else _WORD.findall(lower)
    present = set(words)
    # The patterns cost more than all the rest; few answers hold a word that they can match.
    if not present.isdisjoint(_PENDING_HINTS):
        short = len(words) <= _PENDING_WORDS_AT_MOST and not present.isdisjoint(_PENDING_ALONE)
        if short or _PENDING.search(lower):
            return AnswerKind.PENDING
    if not lower.strip() or (present <= _ACKNOWLEDGING and not present.isdisjoint(_DONE)):
        return AnswerKind.ACKNOWLEDGEMENT
    nothing = not present or (not present.isdisjoint(_NOTHING_HINTS) and _NOTHING.search(lower))
    return AnswerKind.NOTHING_FOUND if nothing else AnswerKind.CONTENT


def flatten(text: str) -> str:
    """Text in its comparable form, a space at both ends."""
    return _flat(_without_volatile_fields(text))


def passages(text: str) -> list[str]:
    """Parts of a search result that stand for themselves, flattened.

    Records of a JSON list, else blocks between blank lines, else lines; numbers and bullets before them left out.
    """
    stripped = _without_volatile_fields(text).strip()
    if _JSON_START.match(stripped):
        parts = _RECORD_BORDER.split(stripped)
    else:
        blocks = _BLANK_LINE.split(stripped)
        parts = [_ORDINAL.sub("", part.lstrip(), count=1) for part in (blocks if blocks[1:] else stripped.split("\n"))]
    return [flat for part in parts if (flat := _flat(part)).strip()]


def _without_volatile_fields(text: str) -> str:
    return _VOLATILE_FIELD.sub("", text) if '"' in text and _JSON_START.match(text) else text


def _flat(text: str) -> str:
    for bracket in "[]{}":
        text = text.replace(bracket, " ")
    return f" {' '.join(text.split())} "


class SeenText:
    """Texts of a context, asked whether a passage stands in one of them."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._texts: dict[str, None] = {}
        self._passages: set[str] = set()

    def add(self, flat: str, parts: Iterable[str] = ()) -> None:
        """Add a flattened text, and the passages it is made of."""
        self._texts[flat] = None
        self._passages.update(parts)

    def holds(self, flat: str) -> bool:
        """Whether a flattened passage stands word for word, as one run, in one of the texts."""
        return flat in self._passages or flat in self._texts or any(flat in text for text in self._texts)


STEM_LETTERS: Final = 6
_FRACTION = re.compile(r"(?:\b\d)?\.\d+")
"""Decimals; of 1023.5 the whole part stays, of 0.5 nothing."""
_DECIMAL_POINT = re.compile(r"\.\d")
_THOUSANDS = re.compile(r",(?=\d{3}\b)")
_WORD = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")
_SHORT_WORDS: Final = frozenset(map("".join, product(ascii_lowercase, ["", *ascii_lowercase])))
"""Of one or two letters: most are of no language in particular, and any text holds some."""
_IGNORED: Final = _SHORT_WORDS.union(word[:STEM_LETTERS] for word in STOP_WORDS)
_stem = itemgetter(slice(STEM_LETTERS))
_Pair: TypeAlias = tuple[str, str]
Item = TypeVar("Item")


def unused_results(trajectory: Trajectory) -> tuple[bool, ...]:
    """Whether each call's result brought new words of which the policy wrote none later; one a call.

    False also where that cannot be said: no result, no new word, nothing written later, or later text that the record
    does not have.
    """
    calls = trajectory.calls
    if not calls:
        return ()
    heard = {turn: _words(text) for turn, text in user_text(trajectory).items()}
    results = [_words(call.result or "") for call in calls]
    later, heard_pairs = _Later(trajectory), _HeardPairs(heard)
    unused: list[bool] = []
    for call, result, new in zip(calls, results, _new_words(calls, results, heard), strict=True):
        silent = bool(new) and later.known_after(call.turn) and not later.any_word(new, call.turn)
        unused.append(silent and not later.any_pair(heard_pairs.unheard(call, result), call.turn))
    return tuple(unused)


class _Later:
    """What the policy wrote after its first call, asked by turn."""

    def __init__(self, trajectory: Trajectory) -> None:
        written = policy_text(trajectory)
        self._last_turn = max(written, default=-1)
        self._unknown = max((turn for turn, text in written.items() if text is None), default=-1)
        first = trajectory.calls[0].turn
        self._words = {turn: _words(text or "") for turn, text in written.items() if turn > first}
        # The answer that was graded counts as the very last text.
        self._words[self._last_turn + 1] = _words(trajectory.prediction or "")

    def known_after(self, turn: int) -> bool:
        """Whether something was written after a turn, and the record has all of it."""
        return self._unknown <= turn < self._last_turn

    def any_word(self, words: set[str], turn: int) -> bool:
        """Whether any of the words occurs after a turn."""
        last = self._last_word
        return any(last[word] > turn for word in last.keys() & words)

    def any_pair(self, pairs: set[_Pair], turn: int) -> bool:
        """Whether any pair of neighbouring words occurs after a turn."""
        last = self._last_pair
        return any(last[pair] > turn for pair in last.keys() & pairs)

    @cached_property
    def _last_word(self) -> Mapping[str, int]:
        """Last turn in which a word was written."""
        return _turns(self._words.items())

    @cached_property
    def _last_pair(self) -> Mapping[_Pair, int]:
        return _turns((turn, _pairs(words)) for turn, words in self._words.items())


class _HeardPairs:
    """Pairs of neighbouring words of user texts by the first turn they precede, made when first asked for."""

    def __init__(self, heard: Mapping[int, list[str]]) -> None:
        self._heard = heard

    @cached_property
    def _first_turn(self) -> Mapping[_Pair, int]:
        return _turns((turn, _pairs(self._heard[turn])) for turn in sorted(self._heard, reverse=True))

    def unheard(self, call: ToolCall, result: list[str]) -> set[_Pair]:
        """Pairs of a call's result that neither the call nor user text before it holds."""
        own = _pairs(result) - _pairs(_words(call.arguments))
        return {pair for pair in own if self._first_turn.get(pair, call.turn + 1) > call.turn}


def _turns(texts: Iterable[tuple[int, Iterable[Item]]]) -> dict[Item, int]:
    """Turn of the last of the texts that holds an item."""
    found: dict[Item, int] = {}
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


def _pairs(words: Iterable[str]) -> set[_Pair]:
    """Neighbouring content words; words that do not count are skipped."""
    return set(pairwise(word for word in words if word not in _IGNORED))


def _words(text: str) -> list[str]:
    """Words of a text in order, lower case and shortened."""
    plain = text if text.isascii() else text.casefold()
    if "." in plain and _DECIMAL_POINT.search(plain):
        plain = _FRACTION.sub("", plain)
    if "," in plain:
        plain = _THOUSANDS.sub("", plain)
    return list(map(_stem, ascii_words(plain) if plain.isascii() else _WORD.findall(plain)))

"""Was a result used? Whether words that a result brought into a trajectory occur in what the policy wrote later.

A *new* word of a result is one that no user text, no earlier result and not the call itself holds. A result is unused
if it brought new words, the policy later wrote none of them, and also no two neighbouring words of the result that
user text and the call itself do not hold (a fact that the context held already and the result confirmed). Words are
compared by their first six letters or digits, languages without spaces by single characters; stop words, words of one
or two letters and decimals do not count. All of this makes "used" easier to say than "unused", and still a paraphrase,
a translation or a number computed from the result leaves no trace: a hint, not a finding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise, product, repeat
from operator import itemgetter
from string import ascii_lowercase
from typing import Final, TypeAlias, TypeVar

from deltah.calls.waste.texts import ascii_words, policy_text, user_text
from deltah.core.types import ToolCall, Trajectory
from deltah.tools.search import STOP_WORDS

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

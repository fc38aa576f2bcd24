"""Was a result used? Whether words that a result brought into a trajectory occur in what the policy wrote later.

A *new* word of a result is one that no user text, no earlier result and not the call itself holds. A result is unused
if it brought new words, the policy later wrote none of them, and also no two neighbouring words of the result that user
text and the call itself do not hold (a fact that the context held already and the result confirmed). Words are compared
by their first six letters, numbers by their first two digits, languages without spaces by single characters; stop
words, words of one or two letters and decimals do not count. All of this makes "used" easier to say than "unused", and
still a paraphrase, a translation or a number computed from the result leaves no trace: a hint, not a finding.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Final, TypeAlias

from deltah.core.types import Trajectory
from deltah.study.texts import policy_text, user_text
from deltah.tools.search import STOP_WORDS

STEM_LETTERS: Final = 6
_STEM = re.compile(
    r"(?<![\d.,])\d{1,2}|\b[^\W\d_][^\W_]{2,5}|[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
)
_IGNORED: Final = frozenset(word[:STEM_LETTERS] for word in STOP_WORDS)
_Term: TypeAlias = str | tuple[str, str]


def unused_results(trajectory: Trajectory) -> tuple[bool, ...]:
    """Whether each call's result brought new words of which the policy wrote none later; one a call.

    False also where that cannot be said: no result, no new word, nothing written later, or later text that the record
    does not have.
    """
    written = policy_text(trajectory)
    last_turn = max(written, default=-1)
    unknown = max((turn for turn, text in written.items() if text is None), default=-1)
    last_use = _last_use(trajectory, written)
    unused: list[bool] = []
    for call, terms in zip(trajectory.calls, _brought(trajectory), strict=True):
        silent = bool(terms) and all(last_use.get(term, -1) <= call.turn for term in terms)
        unused.append(silent and unknown <= call.turn < last_turn)
    return tuple(unused)


def _last_use(trajectory: Trajectory, written: dict[int, str | None]) -> dict[_Term, int]:
    """Last turn in which the policy wrote a term; the answer that was graded counts as the very last."""
    last: dict[_Term, int] = {}
    for turn, text in written.items():
        last.update(dict.fromkeys(_terms(text or ""), turn))
    last.update(dict.fromkeys(_terms(trajectory.prediction or ""), max(written, default=0) + 1))
    return last


def _brought(trajectory: Trajectory) -> list[set[_Term]]:
    """Terms whose later use shows that a call's result was read; none where the result has no new word.

    Results of one turn do not see each other.
    """
    messages = list(reversed(user_text(trajectory).items()))
    heard: set[_Term] = set()
    seen, waiting = set[_Term](), set[_Term]()
    brought: list[set[_Term]] = []
    turn = -1
    for call in trajectory.calls:
        if call.turn != turn:
            seen |= waiting
            waiting, turn = set(), call.turn
            while messages and messages[-1][0] <= turn:
                heard |= _terms(messages.pop()[1])
        terms = _terms(call.result or "")
        own = terms - heard - _terms(call.arguments)
        new_words = {term for term in own - seen if isinstance(term, str)}
        waiting |= terms
        brought.append(new_words | {term for term in own if isinstance(term, tuple)} if new_words else set())
    return brought


def _terms(text: str) -> set[_Term]:
    """Content words of a text and its pairs of neighbouring content words."""
    words = [word for word in _STEM.findall(text.casefold().replace("_", " ")) if word not in _IGNORED]
    return {*words, *pairwise(words)}

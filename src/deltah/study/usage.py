"""Was a result used? Whether words that a result brought into a trajectory occur in what the policy wrote later.

A *new* word of a result is one that no user text, no earlier result and nothing the policy had written holds. Words are
compared by their first six letters, numbers by their first two digits, languages without spaces by single characters;
stop words, words of one or two letters and decimals do not count. All of this makes "used" easier to say than "unused",
and still a paraphrase, a translation or a number computed from the result leaves no trace: a hint, not a finding.
"""

from __future__ import annotations

import re
from typing import Final

from deltah.core.types import Trajectory
from deltah.study.texts import policy_text, user_text
from deltah.tools.search import STOP_WORDS

STEM_LETTERS: Final = 6
_STEM = re.compile(r"(?<![\d.,])\d{1,2}|\b[^\W\d_][^\W_]{0,5}")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_IGNORED: Final = frozenset(word[:STEM_LETTERS] for word in STOP_WORDS)


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
    for turn, new_words in zip((call.turn for call in trajectory.calls), _new_words(trajectory, written), strict=True):
        silent = bool(new_words) and all(last_use.get(word, -1) <= turn for word in new_words)
        unused.append(silent and unknown <= turn < last_turn)
    return tuple(unused)


def _last_use(trajectory: Trajectory, written: dict[int, str | None]) -> dict[str, int]:
    """Last turn in which the policy wrote a word; the answer that was graded counts as the very last."""
    last: dict[str, int] = {}
    for turn, text in written.items():
        last.update(dict.fromkeys(_stems(text or ""), turn))
    last.update(dict.fromkeys(_stems(trajectory.prediction or ""), max(written, default=0) + 1))
    return last


def _new_words(trajectory: Trajectory, written: dict[int, str | None]) -> list[set[str]]:
    """Words that each call's result brought in; results of one turn do not see each other."""
    texts = [(turn, 0, text) for turn, text in user_text(trajectory).items()]
    texts += [(turn, 1, text or "") for turn, text in written.items()]
    texts.sort(reverse=True)
    seen, pending, new = set(_IGNORED), set[str](), []
    turn = -1
    for call in trajectory.calls:
        if call.turn != turn:
            seen |= pending
            pending, turn = set(), call.turn
            while texts and texts[-1][0] <= turn:
                seen |= _stems(texts.pop()[2])
        words = _stems(call.result or "")
        pending |= words
        new.append({word for word in words - seen if len(word) > 2 or not word.isascii() or word.isdigit()})
    return new


def _stems(text: str) -> set[str]:
    folded = text.casefold()
    stems = set(_STEM.findall(folded.replace("_", " ")))
    return stems if folded.isascii() else stems | set(_UNSPACED.findall(folded))

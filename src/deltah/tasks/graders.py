"""Graders: is a final answer right, as a score in [0, 1].

For a question (`qa`) the score is the token F1 of SQuAD and HotpotQA, for `math` it is 1 if the answers are equal as
mathematics. Graders see the text and the gold answers, nothing else.

Departures from the official SQuAD and HotpotQA scripts, each because the score is used as a reward:

- If a gold answer is one number, only an equal number scores: digits shared with another number do not pay, and 3.5
  does not equal 35 although normalisation drops the point.
- If normalisation leaves nothing of an answer ("The", "A" of a multiple choice), its lower-cased text is compared.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from deltah.tasks.answers import extract_answer
from deltah.tasks.equality import math_equal
from deltah.tasks.types import Task, TaskKind

OUTCOME_GRADER: Final = "outcome_grader"
"""Key of a trajectory's metadata: the `TaskKind` by whose grader its outcome was given; absent where it was not."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBER = re.compile(r"[-+−]?\s*[$€£]?\s*(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?\s*%?")
_MAX_NUMBER_CHARS = 1000
_CLOSED_ANSWERS = frozenset({"yes", "no", "noanswer"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """What the graders say of one text."""

    score: float
    """The outcome of the method, F1 in its formulas: `f1` for a question, `correct` for mathematics."""
    f1: float
    """Token F1 in [0, 1], the best over the gold answers."""
    em: bool
    """Exact match after normalisation with any gold answer."""
    correct: bool
    """`em` for a question, mathematical equality for `math`."""
    prediction: str | None
    """The answer that was graded; None if the text has none."""


def grade(task: Task, text: str) -> Grade:
    """Grade the final answer of a text, found by `extract_answer`.

    Raises:
        MissingDependencyError: if a math task needs math-verify and it is not installed.
    """
    prediction = extract_answer(text)
    f1, em = token_f1(prediction, task.golden_answers), exact_match(prediction, task.golden_answers)
    if task.kind is TaskKind.QA:
        return Grade(score=f1, f1=f1, em=em, correct=em, prediction=prediction)
    correct = prediction is not None and any(math_equal(prediction, gold) for gold in task.golden_answers)
    return Grade(score=float(correct), f1=f1, em=em, correct=correct, prediction=prediction)


def normalize_answer(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces: the normalisation of SQuAD and HotpotQA."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str | None, golden_answers: Sequence[str]) -> bool:
    """Whether a prediction equals any gold answer after normalisation; a number must equal as a number."""
    return prediction is not None and any(_equal(prediction, gold) for gold in golden_answers)


def token_f1(prediction: str | None, golden_answers: Sequence[str]) -> float:
    """Token F1 in [0, 1], the best over the gold answers; 0 without a prediction.

    F1 = 2 P R / (P + R) with P and R the shares of common words, counted with repetition, in prediction and gold. As in
    HotpotQA, yes, no and noanswer score only as a whole.
    """
    if prediction is None:
        return 0.0
    return max((_f1(prediction, gold) for gold in golden_answers), default=0.0)


def _f1(prediction: str, gold: str) -> float:
    answers = {_comparable(prediction), _comparable(gold)}
    if _number(gold) is not None or answers & _CLOSED_ANSWERS:
        return float(_equal(prediction, gold))
    given, wanted = _comparable(prediction).split(), _comparable(gold).split()
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted)) if common else 0.0


def _equal(prediction: str, gold: str) -> bool:
    wanted = _number(gold)
    if wanted is not None:
        return _number(prediction) == wanted
    return _comparable(prediction) == _comparable(gold)


def _comparable(text: str) -> str:
    """Normalised text, or the lower-cased text where normalisation leaves nothing of it."""
    return normalize_answer(text) or " ".join(text.lower().split())


def _number(text: str) -> Fraction | None:
    """Value of a text that is one number (with sign, thousands separators, currency or percent sign), else None."""
    text = text.strip().removesuffix(".")
    if (
        len(text) > _MAX_NUMBER_CHARS
        or not _NUMBER.fullmatch(text)
        or not any(character.isdecimal() for character in text)
    ):
        return None
    return Fraction(re.sub(r"[^\d.\-]", "", text.replace("−", "-")))

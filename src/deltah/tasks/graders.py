r"""Graders: the final answer of a text, and its score in [0, 1] against the gold answers.

The score of a question (`qa`) is the token F1 of SQuAD and HotpotQA with two departures, because it serves as a reward.
If a gold answer is one number, only an equal number scores: digits shared with another number do not pay, and 3.5 does
not equal 35 although normalisation drops the point. If normalisation leaves nothing of an answer ("The", "A" of a
multiple choice), its lower-cased text is compared.

The final answer is, in this order: the last `<answer>...</answer>` (without an end tag, up to the end of the text,
because servers leave out a stop string); the last `\boxed{...}` with balanced braces; GSM8K's last `#### x`; the last
line that is not blank, without a leading "Answer:" or "The answer is".
"""

from __future__ import annotations

import gc
import logging
import re
import string
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Final, NamedTuple

from deltah.core.registry import Registry
from deltah.errors import InvalidValueError, missing_dependency

if TYPE_CHECKING:
    from deltah.tasks.task_files import Task

GRADERS: Registry[Callable[[str, Sequence[str]], float]] = Registry("grader")
"""Graders by name: functions from a prediction and the gold answers to a score in [0, 1]."""
OUTCOME_GRADER: Final = "outcome_grader"
"""Key of a trajectory's metadata: name of the grader that gave its outcome; absent if deltah did not grade it."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBER = re.compile(r"[-+−]?\s*[$€£]?\s*(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?\s*%?")
_MAX_NUMBER_CHARS = 1000
_CLOSED_ANSWERS = frozenset({"yes", "no", "noanswer"})
_TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
_OPEN_TAG = re.compile(r"<answer>((?:(?!<answer>).)*)\Z", re.DOTALL | re.IGNORECASE)
_BRACES = re.compile(r"(\\f?boxed\s*\{)|\\.|([{}])", re.DOTALL)
_LEAD = re.compile(
    r"\W{0,9}(?:(?:so|thus|hence|therefore)\W{1,9})?(?:the\s+)?(?:final\s+)?answer(?:\s+is\b\s*:?|\s*:)\W*?(?=[\w\\$(+\-])",
    re.IGNORECASE,
)
_LEAD_CHARS = 80


class Grade(NamedTuple):
    """Score of one text for a task."""

    score: float
    """In [0, 1]."""
    prediction: str | None
    """The answer that was graded; None if the text has none, which scores 0."""


def grade(task: Task, text: str) -> Grade:
    """Grade the final answer of a text, found by `extract_answer`."""
    prediction = extract_answer(text)
    if prediction is None:
        return Grade(0.0, None)
    score = float(GRADERS.resolve(task.kind).value(prediction, task.golden_answers))
    if not 0.0 <= score <= 1.0:
        raise InvalidValueError(
            f"the grader {task.kind!r} gave {score} to {prediction!r:.60}; expected a score in [0, 1]"
        )
    return Grade(score, prediction)


def normalize_answer(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces: the normalisation of SQuAD and HotpotQA."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


@GRADERS.register("qa", title="F1", meaning="the token F1 of the final answer against the gold answers")
def token_f1(prediction: str, golden_answers: Sequence[str]) -> float:
    """Token F1 in [0, 1], the best over the gold answers.

    F1 = 2 P R / (P + R) with P and R the shares of common words, counted with repetition, in prediction and gold. As in
    HotpotQA, yes, no and noanswer score only as a whole.
    """
    return max((_f1(prediction, gold) for gold in golden_answers), default=0.0)


@GRADERS.register("em", title="EM", meaning="1 where the final answer equals a gold answer once normalised, else 0")
def exact_match(prediction: str, golden_answers: Sequence[str]) -> float:
    """1 if a prediction equals any gold answer after `normalize_answer`, else 0; a number must equal as a number."""
    return float(any(_equal(prediction, gold) for gold in golden_answers))


@GRADERS.register(
    "math", title="outcome", meaning="1 where the final answer equals a gold answer as mathematics, else 0"
)
def math_equality(prediction: str, golden_answers: Sequence[str]) -> float:
    """1 if a prediction equals any gold answer as mathematics, else 0."""
    return float(any(math_equal(prediction, gold) for gold in golden_answers))


def _f1(prediction: str, gold: str) -> float:
    given, wanted = _comparable(prediction), _comparable(gold)
    if _number(gold) is not None or _CLOSED_ANSWERS.intersection((given, wanted)):
        return float(_equal(prediction, gold))
    words, gold_words = given.split(), wanted.split()
    common = sum((Counter(words) & Counter(gold_words)).values())
    return 2 * common / (len(words) + len(gold_words)) if common else 0.0


def _equal(prediction: str, gold: str) -> bool:
    number = _number(gold)
    return _comparable(prediction) == _comparable(gold) if number is None else _number(prediction) == number


def _comparable(text: str) -> str:
    """Normalised text, or the lower-cased text where normalisation leaves nothing of it."""
    return normalize_answer(text) or " ".join(text.lower().split())


def _number(text: str) -> Fraction | None:
    """Value of a text that is one number (with sign, thousands separators, currency or percent sign), else None."""
    text = text.strip().removesuffix(".")
    if len(text) > _MAX_NUMBER_CHARS or not _NUMBER.fullmatch(text) or not any(map(str.isdecimal, text)):
        return None
    return Fraction(re.sub(r"[^\d.\-]", "", text.replace("−", "-")))


def extract_answer(text: str) -> str | None:
    r"""Final answer of a text, None if there is none; a `\boxed{...}` inside answer tags is unwrapped."""
    tagged = _TAGGED.findall(text) or _OPEN_TAG.findall(text)
    if tagged:
        answer = last_boxed(tagged[-1]) or tagged[-1]
    else:
        answer = last_boxed(text) or hash_answer(text) or _last_line(text)
    return answer.strip() or None


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` whose braces balance (`\{` and `\}` do not count); None if there is none."""
    opened: list[tuple[bool, int]] = []
    start, stop = -1, -1
    for match in _BRACES.finditer(text):
        if match[1] or match[2] == "{":
            opened.append((bool(match[1]), match.end()))
        elif match[2] == "}" and opened:
            boxed, position = opened.pop()
            if boxed and position > start:
                start, stop = position, match.start()
    return text[start:stop] if start >= 0 else None


def hash_answer(text: str) -> str | None:
    """Text after the last `####` of a GSM8K solution on its line; None if there is none."""
    answers = (line.rpartition("####")[2].strip() for line in reversed(text.splitlines()) if "####" in line)
    return next(filter(None, answers), None)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    line = lines[-1].strip() if lines else ""
    lead = _LEAD.match(line[:_LEAD_CHARS])
    return line[lead.end() :] if lead else line


TIMEOUT_S = 2
"""Seconds that parsing an answer, and comparing two, may take on the main thread."""
MAX_CHARS = 1000
"""A longer answer is wrong unless it equals the gold text."""
_NO_OUTPUT = logging.NullHandler()
_MAX_CHARS_OFF_MAIN_THREAD = 100
_POWER = r"(?:\^|\*\*)\s*"
_RUNAWAY = re.compile(
    rf"!|\\(?:prod|sum|int|binom)|{_POWER}(?:\{{[^{{}}]*|\([^()]*|\w+)(?:\^|\*\*)|{_POWER}[{{(]?\s*\d{{3,}}"
)
_PLAIN = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d{1,3}|/\d+)?", re.IGNORECASE)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_WRAPPERS = re.compile(r"\\boxed\s*\{(.*)\}|\$+(.*?)\$+|\\\((.*)\\\)|\\\[(.*)\\\]", re.DOTALL)


def math_equal(prediction: str, gold: str) -> bool:
    r"""Whether two answers are equal as mathematics: 1/2 = 0.5 = \frac{1}{2}, 1,000 = 1000, 50% = 0.5.

    An answer that cannot be parsed, or takes longer than `TIMEOUT_S`, is equal only to its own text.
    """
    prediction, gold = prediction.strip(), gold.strip()
    if max(len(prediction), len(gold)) > MAX_CHARS:
        return prediction == gold
    given, wanted = _clean(prediction), _clean(gold)
    if given == wanted:
        return bool(given)
    first, second = _value(given), _value(wanted)
    if first is not None and second is not None:
        return first == second
    return bool(given and wanted) and _verify(prediction, gold)


def _clean(text: str) -> str:
    """An answer without its LaTeX wrapper, currency sign, thousands separators and last full stop."""
    text = text.removesuffix(".").replace("−", "-").replace("\\$", "").replace("\\%", "%")
    wrapped = _WRAPPERS.fullmatch(text)
    if wrapped:
        text = next(group for group in wrapped.groups() if group is not None)
    if text.count("$") == 1:
        text = text.replace("$", "")
    return _THOUSANDS.sub("", " ".join(text.split()))


def _value(text: str) -> Fraction | None:
    """Exact value of a plain number or fraction of integers, else None."""
    if not _PLAIN.fullmatch(text):
        return None
    numerator, _, denominator = text.partition("/")
    if denominator and not int(denominator):
        return None
    return Fraction(numerator) / int(denominator or 1)


def _verify(prediction: str, gold: str) -> bool:
    """Whether math-verify takes the answers for equal as they are written, or with both marked as LaTeX."""
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        raise missing_dependency("math-verify", extra="tools", purpose="Grading mathematics") from error
    # Without a handler the library's warnings go to stderr, into the progress bars; a configured root still gets them.
    logging.getLogger("math_verify").addHandler(_NO_OUTPUT)
    answers = (prediction, gold)
    timeout = TIMEOUT_S if threading.current_thread() is threading.main_thread() else None
    if timeout is None and any(len(text) > _MAX_CHARS_OFF_MAIN_THREAD or _RUNAWAY.search(text) for text in answers):
        return False
    as_latex = [text if "$" in text or "\\boxed" in text else f"${text}$" for text in answers]
    return _agree(answers, timeout) or _agree(as_latex, timeout)


def _agree(answers: Sequence[str], timeout: int | None) -> bool:
    import math_verify

    collecting = gc.isenabled()
    gc.disable()  # what the timer raises inside a callback of the collector is lost
    try:
        given, wanted = (math_verify.parse(text, parsing_timeout=timeout) for text in answers)
        return bool(wanted and given and math_verify.verify(wanted, given, timeout_seconds=timeout))
    except Exception:  # sympy raises anything on odd input; such an answer equals nothing
        return False
    finally:
        if collecting:
            gc.enable()

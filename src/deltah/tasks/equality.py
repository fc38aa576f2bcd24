r"""Are two mathematical answers equal? Numbers by their value, everything else by math-verify.

math-verify parses LaTeX and plain expressions into sympy and compares them. It protects itself by SIGALRM, which works
on the main thread of a process alone. Elsewhere (a thread pool, some servers) there is no timer to stop a runaway, so
an answer that could run away (long, with factorials, nested or large powers) is compared as text there, and all others
as on the main thread.
"""

from __future__ import annotations

import gc
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

from deltah.errors import missing_dependency

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

    Raises:
        MissingDependencyError: if the answers are not plain numbers and math-verify is not installed.
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
    """math-verify on the answers as written, then with both marked as LaTeX."""
    try:
        import math_verify
    except ImportError as error:
        raise missing_dependency("math-verify", extra="tools", purpose="Grading mathematics") from error
    # Without a handler the library's warnings go to stderr, into the progress bars; a configured root still gets them.
    logging.getLogger("math_verify").addHandler(_NO_OUTPUT)
    timeout: int | None = TIMEOUT_S
    if threading.current_thread() is not threading.main_thread():
        timeout = None
        if any(len(text) > _MAX_CHARS_OFF_MAIN_THREAD or _RUNAWAY.search(text) for text in (prediction, gold)):
            return False
    return _agree(math_verify, prediction, gold, timeout) or _agree(
        math_verify, _as_latex(prediction), _as_latex(gold), timeout
    )


def _agree(math_verify: Any, prediction: str, gold: str, timeout: int | None) -> bool:
    try:
        with _no_collection():
            wanted = math_verify.parse(gold, parsing_timeout=timeout)
            given = math_verify.parse(prediction, parsing_timeout=timeout)
            return bool(wanted and given and math_verify.verify(wanted, given, timeout_seconds=timeout))
    except Exception:  # sympy raises what it likes on odd input; such an answer equals nothing
        return False


@contextmanager
def _no_collection() -> Iterator[None]:
    """Hold the garbage collector back: what the timer raises inside one of its callbacks is lost."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _as_latex(text: str) -> str:
    return text if "$" in text or "\\boxed" in text else f"${text}$"

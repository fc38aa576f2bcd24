"""Whether a tool's answer is a failure, from its text alone: one rule for our tools, for TRL's loop and for logs."""

from __future__ import annotations

import json
import re

from deltah.core.types import CallStatus

ERROR_PREFIX = "error: "
"""First characters of the text of a failed call of our own tools, and of no other."""
_OUTPUT_PREFIX = "output: "

_ERROR_TEXT = re.compile(r"\s*error(?:\s*\Z|(?:\s[^\n:]{0,80})?:)", re.IGNORECASE)
_TRACEBACK = re.compile(r"\s*(?:Traceback \(most recent call last\):|[A-Z]\w*(?:Error|Exception): )")
_PYTHON_ERROR = re.compile(r"\s*\{'error': (?!None|''|False)")
"""The text of a Python dict, as TRL writes it."""


def is_error(text: str) -> bool:
    """Whether a tool's result reports a failure.

    True if it starts with `error:`, `Error calling search: ...` or the like (any case; a text that merely begins with
    the word is no error), with a Python traceback or the name of an exception (`ValueError: ...`), or is an object
    {"error": ...}, in JSON or Python spelling, that is neither empty nor false.
    """
    if _ERROR_TEXT.match(text) or _PYTHON_ERROR.match(text) or _TRACEBACK.match(text):
        return True
    if not text.lstrip().startswith("{") or '"error"' not in text:
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return bool(value.get("error"))


def status_of(result: str | None) -> CallStatus:
    """Status of a call by its result; None: no result followed."""
    if result is None:
        return CallStatus.UNANSWERED
    return CallStatus.ERROR if is_error(result) else CallStatus.OK


def error_text(reason: str) -> str:
    """Text of a failed call."""
    return ERROR_PREFIX + reason


def success_text(text: str) -> str:
    """Text of a successful call; one that reads like a failure gets the word "output: " before it."""
    return _OUTPUT_PREFIX + text if is_error(text) else text

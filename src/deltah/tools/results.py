"""How a tool tells the model, and the one who reads the trace, that a call failed.

A tool's answer is text. Invariant for the tools of this package: the text starts with `ERROR_PREFIX` exactly when the
call failed; a success whose own text would look like a failure is marked by `success_text`. `is_error` also knows the
form in which TRL reports an exception or an unknown tool, the text of a dict: `{'error': ...}`.
"""

from __future__ import annotations

from deltah.core.results import ERROR_PREFIX, is_error

_OUTPUT_PREFIX = "output: "


def error_text(reason: str) -> str:
    """Text of a failed call."""
    return ERROR_PREFIX + reason


def success_text(text: str) -> str:
    """Text of a successful call; one that reads like a failure gets the word "output: " before it."""
    return _OUTPUT_PREFIX + text if is_error(text) else text

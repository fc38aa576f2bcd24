r"""The final answer in a text: where the model put it, by the conventions of the field.

In this order: the last `<answer>...</answer>` (an opening tag without its end reaches to the end of the text, because a
server leaves out a stop string); the last `\boxed{...}` with balanced braces; GSM8K's last `#### x`; the last line that
is not blank, without a leading "Answer:" or "The answer is". Nothing here knows the gold answer.
"""

from __future__ import annotations

import re

_TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
_OPEN_TAG = re.compile(r"<answer>((?:(?!<answer>).)*)\Z", re.DOTALL | re.IGNORECASE)
_BRACES = re.compile(r"(\\f?boxed\s*\{)|\\.|([{}])", re.DOTALL)
_LEAD = re.compile(
    r"\W{0,9}(?:(?:so|thus|hence|therefore)\W{1,9})?(?:the\s+)?(?:final\s+)?answer(?:\s+is\b\s*:?|\s*:)\W*?(?=[\w\\$(+\-])",
    re.IGNORECASE,
)
_LEAD_CHARS = 80


def extract_answer(text: str) -> str | None:
    r"""Final answer of a text; None if there is none.

    A `\boxed{...}` inside answer tags is unwrapped.
    """
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
    """What follows the last `####` of a GSM8K solution on its line; None if there is none."""
    for line in reversed(text.splitlines()):
        answer = line.rpartition("####")[2].strip()
        if "####" in line and answer:
            return answer
    return None


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    line = lines[-1].strip() if lines else ""
    lead = _LEAD.match(line[:_LEAD_CHARS])
    return line[lead.end() :] if lead else line

"""What the text of one call shows: which calls it equals, and its result in forms that can be compared.

Two calls are equal if they name the same tool with arguments that are equal as JSON: key order and white space between
tokens are free, and case, quotes and types are not. No name of a tool or argument has a meaning here.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from deltah.core.failures import is_transient
from deltah.core.types import CallStatus, ToolCall

MIN_PASSAGE_CHARS: Final = 40
"""A shorter passage of a result is not looked for on its own."""
MIN_TEXT_CHARS: Final = 160
"""A result without passages is not looked for in the context if it is shorter."""

_JSON = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))
_MEDIUM = re.compile(r"\[(?:image|image_url|input_image|audio|input_audio|file|video|document|resource)\]")
_VOLATILE_FIELD = re.compile(
    r'"(?:took|took_ms|request_?id|(?:search|query|response|elapsed)_?(?:time|ms)\w*)"\s*:\s*(?:"[^"]*"|[-+\d.eE]+)\s*,?'
)
"""Fields of an answer that say how it was made; they differ from run to run."""
_VARYING = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|\d+")
_JSON_START = re.compile(r"\s*[\[{]\s*[\[{\"\]}]")
_RECORD_BORDER = re.compile(r"\}\s*,\s*\{")
_BLANK_LINE = re.compile(r"\n\s*\n")
_ORDINAL = re.compile(
    r"\A(?:(?:doc(?:ument)?|result|source|passage)\s*[\[(#]?\d{1,3}|[\[(#]?\d{1,3}[\]).:]|[-*•])[\]).:]*\s*",
    re.IGNORECASE,
)
_WORD = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")
_LOWER_OR_SPACE: Final = bytes(ord(chr(code).lower()) if chr(code).isalnum() else 32 for code in range(128)).ljust(256)


@dataclass(slots=True, eq=False)
class CallText:
    """One call and its result, as later calls are compared with them."""

    name: str
    turn: int
    arguments: str
    """Equal for equal arguments."""
    answer: str | None
    """Equal for the same result; of an error without its numbers. None: no result, or one that cannot be compared."""
    failed: bool
    transient: bool
    """Whether it failed for a reason that may pass."""
    flat: str
    """Result with single spaces; empty where there is none."""

    @property
    def hashes(self) -> tuple[int, int | None, int | None]:
        """64-bit hashes of the call, its result, and the words of the result that the call lacks."""
        same = _hash(f"{self.name}\0{self.arguments}")
        if self.answer is None or self.transient:
            return same, None, None
        news = sorted(set(split_words(self.flat)).difference(split_words(self.arguments)))
        return same, _hash(f"{self.failed}\0{self.answer}"), _hash(" ".join(news))


def read_call(call: ToolCall, limit_s: float = math.inf) -> CallText:
    """Read one call; a failure after its time limit may pass."""
    failed, text = call.status is CallStatus.ERROR, call.result
    flat = "" if text is None else flatten(text)
    answer = None if text is None or _MEDIUM.search(text) else flat
    return CallText(
        name=call.name,
        turn=call.turn,
        arguments=canonical(call.arguments),
        answer=_VARYING.sub("#", answer.casefold()) if failed and answer is not None else answer,
        failed=failed,
        transient=failed and (is_transient(text or "") or (call.duration_s or 0.0) >= limit_s),
        flat=flat,
    )


def canonical(arguments: str) -> str:
    """Arguments as JSON in one spelling; text that is none without outer white space."""
    try:
        return _JSON.encode(json.loads(arguments)) if arguments.strip() else "{}"
    except (ValueError, RecursionError):
        return arguments.strip()


def split_words(text: str) -> list[str]:
    """Runs of letters and digits in order and lower case; single characters of languages without spaces."""
    if not text.isascii():
        return _WORD.findall(text.casefold())
    return text.encode("ascii").translate(_LOWER_OR_SPACE).decode("ascii").split()  # several times faster


def flatten(text: str) -> str:
    """Comparable form of a text: white space is single spaces, fields that vary by run are left out."""
    return _flat(_without_volatile_fields(text))


def parts_of(text: str) -> list[str]:
    """Passages of a result, flattened; the whole where they are short, and nothing where that is."""
    stripped = _without_volatile_fields(text).strip()
    if _JSON_START.match(stripped):
        parts = _RECORD_BORDER.split(stripped.strip("[] \n"))
    else:
        blocks = _BLANK_LINE.split(stripped)
        parts = [_ORDINAL.sub("", part.lstrip(), count=1) for part in (blocks if blocks[1:] else stripped.split("\n"))]
    flat = [part for part in map(_without_brackets, parts) if part.strip()]
    if len(flat) > 1 and all(len(part) >= MIN_PASSAGE_CHARS for part in flat):
        return flat
    whole = _without_brackets(stripped)
    return [whole] if len(whole) >= MIN_TEXT_CHARS else []


def context_form(text: str) -> str:
    """Form of a text in which `parts_of` are found."""
    return _without_brackets(_without_volatile_fields(text))


def _without_volatile_fields(text: str) -> str:
    return _VOLATILE_FIELD.sub("", text) if '"' in text and _JSON_START.match(text) else text


def _without_brackets(text: str) -> str:
    for bracket in "[]{}":
        text = text.replace(bracket, " ")
    return _flat(text)


def _flat(text: str) -> str:
    return f" {' '.join(text.split())} "


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")

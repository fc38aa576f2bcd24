"""Results of tool calls as text: what kind of answer one is, and whether it already stands in a text.

`flatten` makes texts comparable: brackets and white space become single spaces, fields of search engines that differ
from run to run (score, time taken, request id) are left out. Everything else counts, case and punctuation too, so that
a result is *in* a text only where it stands there word for word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from deltah.calls.waste.forms import word_set
from deltah.calls.waste.texts import ascii_words
from deltah.core.types import CallStatus, ToolCall

SHORT_CHARS: Final = 400
"""Only answers up to this length are read as a message (pending, nothing found) instead of as content."""


class AnswerKind(StrEnum):
    """What the text of a result is good for as evidence."""

    CONTENT = "content"
    NOTHING_FOUND = "nothing_found"
    """The tool looked and found nothing: an answer, but the same words answer any query."""
    ACKNOWLEDGEMENT = "acknowledgement"
    """"ok", "done", an empty text: says nothing about what happened."""
    PENDING = "pending"
    """Not ready yet: whoever polls has to call again."""
    OPAQUE = "opaque"
    """Holds an image or another medium that the log does not show."""
    FAILED = "failed"
    """An error text or a traceback."""
    ABSENT = "absent"
    """No result followed."""


_VOLATILE_FIELD = re.compile(
    r'"(?:_?score|relevance_score|similarity_score|took|took_ms|request_?id|(?:search|query|response|elapsed)_?(?:time|ms)\w*)"'
    r'\s*:\s*(?:"[^"]*"|[-+\d.eE]+)\s*,?'
)
_JSON_START = re.compile(r"\s*[\[{]\s*[\[{\"\]}]")
_RECORD_BORDER = re.compile(r"\}\s*,\s*\{")
_BLANK_LINE = re.compile(r"\n\s*\n")
_ORDINAL = re.compile(
    r"\A(?:(?:doc(?:ument)?|result|source|passage)\s*[\[(#]?\d{1,3}|[\[(#]?\d{1,3}[\]).:]|[-*•])[\]).:]*\s*",
    re.IGNORECASE,
)
_TRACEBACK = re.compile(r"\s*(?:Traceback \(most recent call last\)|[\w.]*(?:Error|Exception)(?::|\s*\Z))")
_MEDIUM = re.compile(r"\[(?:image|image_url|input_image|audio|input_audio|file|video|document|resource)\]")
_NOTHING = re.compile(
    r"\b(?:no|0|zero)\s+(?:\w+\s+){0,2}(?:results?|matches|match|documents?|hits?|records?|items?|entries|data|files?|rows?"
    r"|information|pages?)\b|\bnothing\b|\bnot found\b|\bcould ?n[o']t find\b|\bdid(?: not|n't) match\b"
    r"|\bunable to\b|\bdoes(?: not|n't) exist\b"
)
_PENDING = re.compile(
    r"\b(?:pending|queued|in[ _-]progress|processing|not (?:yet )?(?:ready|finished|completed?|available yet)"
    r"|still (?:running|working|loading|building|waiting)|no new output|try again (?:later|in)"
    r"|\d{1,3} ?% (?:completed?|done))\b"
    r'|"(?:status|state|phase)"\s*:\s*"(?:running|waiting|building|loading|start\w*|initiali\w+|scheduled|created|active)'
)
_PENDING_HINTS: Final = word_set(
    """active again available building complete completed created done finished initialized initializing initialising
    loading new pending processing progress queued ready running scheduled start started starting still waiting"""
)
_PENDING_ALONE: Final = word_set("building loading running scheduled starting waiting")
_NOTHING_HINTS: Final = word_set("0 no zero nothing found find match unable exist")
_PENDING_WORDS_AT_MOST: Final = 6
_DONE: Final = word_set(
    """
    accepted added applied clicked complete completed created deleted done executed finished inserted noted null
    none ok okay pressed removed replaced saved scrolled sent set submitted success successful successfully
    typed updated written
    """
)
_AROUND_DONE: Final = word_set(
    """
    0 1 200 a action all and been code command exit file has have in is it item message no operation output
    record request result return returned returncode status stderr stdout task the to true was with without your
    """
)
_ACKNOWLEDGING: Final = _DONE | _AROUND_DONE
_WORD = re.compile(r"[^\W_]+")


def answer_kind(call: ToolCall) -> AnswerKind:
    """Classify the result of a call; a long text is content unless it is a failure."""
    text = call.result
    if text is None:
        return AnswerKind.ABSENT
    if call.status is CallStatus.ERROR or _TRACEBACK.match(text):
        return AnswerKind.FAILED
    if "[" in text and _MEDIUM.search(text):
        return AnswerKind.OPAQUE
    return _message_kind(text) if len(text) <= SHORT_CHARS else AnswerKind.CONTENT


def _message_kind(text: str) -> AnswerKind:
    lower = text.lower()
    words = ascii_words(lower) if lower.isascii() else _WORD.findall(lower)
    present = set(words)
    # The patterns cost more than all the rest; few answers hold a word that they can match.
    if not present.isdisjoint(_PENDING_HINTS):
        short = len(words) <= _PENDING_WORDS_AT_MOST and not present.isdisjoint(_PENDING_ALONE)
        if short or _PENDING.search(lower):
            return AnswerKind.PENDING
    if not lower.strip() or (present <= _ACKNOWLEDGING and not present.isdisjoint(_DONE)):
        return AnswerKind.ACKNOWLEDGEMENT
    nothing = not present or (not present.isdisjoint(_NOTHING_HINTS) and _NOTHING.search(lower))
    return AnswerKind.NOTHING_FOUND if nothing else AnswerKind.CONTENT


def flatten(text: str) -> str:
    """Text in its comparable form, a space at both ends."""
    return _flat(_without_volatile_fields(text))


def passages(text: str) -> list[str]:
    """Parts of a search result that stand for themselves, flattened.

    Records of a JSON list, else blocks between blank lines, else lines; numbers and bullets before them left out.
    """
    stripped = _without_volatile_fields(text).strip()
    if _JSON_START.match(stripped):
        parts = _RECORD_BORDER.split(stripped)
    else:
        blocks = _BLANK_LINE.split(stripped)
        parts = [_ORDINAL.sub("", part.lstrip(), count=1) for part in (blocks if blocks[1:] else stripped.split("\n"))]
    return [flat for part in parts if (flat := _flat(part)).strip()]


def _without_volatile_fields(text: str) -> str:
    return _VOLATILE_FIELD.sub("", text) if '"' in text and _JSON_START.match(text) else text


def _flat(text: str) -> str:
    for bracket in "[]{}":
        text = text.replace(bracket, " ")
    return f" {' '.join(text.split())} "


class SeenText:
    """Texts of a context, asked whether a passage stands in one of them."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._texts: dict[str, None] = {}
        self._passages: set[str] = set()

    def add(self, flat: str, parts: Iterable[str] = ()) -> None:
        """Add a flattened text, and the passages it is made of."""
        self._texts[flat] = None
        self._passages.update(parts)

    def holds(self, flat: str) -> bool:
        """Whether a flattened passage stands word for word, as one run, in one of the texts."""
        return flat in self._passages or flat in self._texts or any(flat in text for text in self._texts)

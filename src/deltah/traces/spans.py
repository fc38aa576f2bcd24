"""Which sampled tokens of one assistant message are reasoning, which spell a call, and which only delimit.

Input is the text of each token; output is a partition of 0..T into `Span`s. Pure text work, no tokenizer: calls of
the known dialects (`deltah.traces.dialects`) are found in the joined text and mapped back to tokens.

* call: from an opening delimiter through its closing one, or to the end of the message where the dialect has none or
  the message was cut off; for bare JSON calls, the JSON object that names a known call.
* control: special end-of-turn tokens, think tags, channel headers, and white space between them and calls.
* reasoning: everything else, the thinking and the final answer alike.

A border inside a token cannot be kept: the token goes to the call or control side and the result says so
(`exact=False`), unless what is cut off is only white space.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from deltah.core.types import SegmentKind
from deltah.traces.dialects import END_TOKENS, THINK_TAG, call_extents, json_call_extents


class Span(NamedTuple):
    """Half-open run of tokens of one kind; of characters, while borders are looked for."""

    kind: SegmentKind
    start: int
    stop: int


class MessageSpans(NamedTuple):
    """Partition of one message's tokens."""

    spans: tuple[Span, ...]
    exact: bool
    """False where a border lies inside a token."""


_CHANNEL = re.compile(r"(?:<\|start\|>[^<]*)?<\|channel\|>(?P<header>[^<]*(?:<\|constrain\|>[^<]*)?)<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:end|call|return|start|channel)\|>")


def split_message(tokens: Sequence[str], call_names: Sequence[str] = (), *, only_calls: bool = False) -> MessageSpans:
    """Partition the tokens of one assistant message.

    Args:
        tokens: Text of each sampled token; special tokens as the server prints them.
        call_names: Names of the calls that the server parsed out of this message, for calls written as bare JSON.
        only_calls: Whether the server found calls in the message and nothing else: then text without a known delimiter
            spells them (a forced tool choice samples the arguments alone).
    """
    ends = list(accumulate(map(len, tokens)))
    text = "".join(tokens)
    extents = [*_markup(text, call_names)]
    if only_calls and text.strip() and not any(extent.kind is SegmentKind.CALL for extent in extents):
        last = next((t for t in range(len(tokens), 0, -1) if tokens[t - 1] not in END_TOKENS), 0)
        extents = [Span(SegmentKind.CALL, 0, ends[last - 1])] if last else []
    kinds, exact = [SegmentKind.REASONING] * len(tokens), True
    for extent in extents:
        exact &= _paint(kinds, tokens, ends, extent)
    for t, token in enumerate(tokens):
        if token in END_TOKENS and kinds[t] is SegmentKind.REASONING:
            kinds[t] = SegmentKind.CONTROL
    if tokens and not tokens[-1] and kinds[-1] is SegmentKind.REASONING:
        kinds[-1] = SegmentKind.CONTROL  # llama.cpp's own server prints the end token as nothing
    _absorb_white_space(kinds, tokens)
    return MessageSpans(tuple(_runs(kinds, _call_starts(extents, ends))), exact)


def _markup(text: str, call_names: Sequence[str]) -> Iterator[Span]:
    """Calls and delimiters in the text, calls first."""
    channels = list(_channels(text))
    calls = [e for e in channels if e.kind is SegmentKind.CALL]
    calls += [Span(SegmentKind.CALL, *extent) for extent in call_extents(text)]
    if not calls and call_names:
        calls = [Span(SegmentKind.CALL, *extent) for extent in json_call_extents(text, frozenset(call_names))]
    yield from calls
    delimiters = [e for e in channels if e.kind is SegmentKind.CONTROL]
    delimiters += [Span(SegmentKind.CONTROL, m.start(), m.end()) for m in THINK_TAG.finditer(text)]
    for extent in delimiters:
        # A think tag quoted inside a call's arguments is part of the call.
        if not any(call.start < extent.stop and extent.start < call.stop for call in calls):
            yield extent


def _channels(text: str) -> Iterator[Span]:
    """gpt-oss: `<|channel|>analysis<|message|>...<|end|>`; a header with `to=` addresses a tool."""
    if "<|channel|>" not in text:
        return
    for match in _CHANNEL.finditer(text):
        if "to=" not in match[0]:
            yield Span(SegmentKind.CONTROL, match.start(), match.end())
            continue
        end = _CHANNEL_END.search(text, match.end())
        stop = len(text) if end is None else (end.end() if end[0] == "<|call|>" else end.start())
        yield Span(SegmentKind.CALL, match.start(), stop)


def _paint(kinds: list[SegmentKind], tokens: Sequence[str], ends: Sequence[int], extent: Span) -> bool:
    """Give the tokens that an extent touches its kind; False if a border cuts through a token's visible text."""
    first, last = bisect_right(ends, extent.start), bisect_left(ends, extent.stop)
    before = tokens[first][: len(tokens[first]) - (ends[first] - extent.start)]
    after = tokens[last][len(tokens[last]) - (ends[last] - extent.stop) :] if ends[last] > extent.stop else ""
    kinds[first : last + 1] = [extent.kind] * (last + 1 - first)
    return not before.strip() and not after.strip()


def _absorb_white_space(kinds: list[SegmentKind], tokens: Sequence[str]) -> None:
    """Turn white space that touches a call or delimiter into control: the template's, not the policy's reasoning."""
    beside = [t for t, kind in enumerate(kinds) if kind is not SegmentKind.REASONING]
    for t in beside:
        for step in (1, -1):
            at = t + step
            while 0 <= at < len(kinds) and kinds[at] is SegmentKind.REASONING and not tokens[at].strip():
                kinds[at] = SegmentKind.CONTROL
                at += step


def _call_starts(extents: Sequence[Span], ends: Sequence[int]) -> frozenset[int]:
    """First token of each call, so that calls that touch stay two spans."""
    return frozenset(bisect_right(ends, e.start) for e in extents if e.kind is SegmentKind.CALL)


def _runs(kinds: Sequence[SegmentKind], breaks: frozenset[int]) -> Iterator[Span]:
    start = 0
    for t in range(1, len(kinds) + 1):
        if t == len(kinds) or kinds[t] is not kinds[start] or t in breaks:
            yield Span(kinds[start], start, t)
            start = t

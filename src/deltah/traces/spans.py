"""Which sampled tokens of one assistant message are reasoning, which spell a call, and which only delimit.

Input is the text of each token; output is a partition of 0..T into `Span`s. Pure text work, no tokenizer: delimiters of
the common dialects are found in the joined text and mapped back to tokens.

* call: from an opening delimiter through its closing one, or to the end of the message where the dialect has none or
  the message was cut off; for bare JSON calls, the JSON object that names a known call.
* control: special end-of-turn tokens, think tags, channel headers, and white space between them and calls.
* reasoning: everything else, the thinking and the final answer alike.

A border inside a token cannot be kept: the token goes to the call or control side and the result says so
(`exact=False`), unless what is cut off is only white space.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from deltah.core.types import SegmentKind


class Span(NamedTuple):
    """Half-open run of tokens of one kind."""

    kind: SegmentKind
    start: int
    stop: int


class MessageSpans(NamedTuple):
    """Partition of one message's tokens."""

    spans: tuple[Span, ...]
    exact: bool
    """False where a border lies inside a token."""


class TextCall(NamedTuple):
    """A call as written in the text."""

    name: str | None
    """None if the text does not parse as a call."""
    arguments: str


class _Extent(NamedTuple):
    """Half-open run of characters."""

    kind: SegmentKind
    start: int
    stop: int


END_TOKENS = frozenset(
    {
        "<|im_end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|return|>",
        "</s>",
        "<eos>",
        "<end_of_turn>",
        "<|end_of_turn|>",
        "<|eot|>",
        "<｜end▁of▁sentence｜>",
    }
)
"""Special tokens that end a turn; only a whole token counts, the same text spelled out is prose."""

_DELIMITED_CALL = re.compile(
    r"<tool_call>.*?(?:</tool_call>|\Z)"  # Qwen, Hermes, GLM
    r"|<\|python_tag\|>.*\Z"  # Llama 3
    r"|\[TOOL_CALLS\].*\Z"  # Mistral
    r"|<｜tool▁calls▁begin｜>.*?(?:<｜tool▁calls▁end｜>|\Z)"
    r"|<\|tool_calls_section_begin\|>.*?(?:<\|tool_calls_section_end\|>|\Z)",  # Kimi
    re.DOTALL,
)
_CHANNEL = re.compile(r"(?:<\|start\|>[^<]*)?<\|channel\|>(?P<header>[^<]*(?:<\|constrain\|>[^<]*)?)<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:end|call|return|start|channel)\|>")
_THINK_TAG = re.compile(r"</?think>")
_JSON_START = re.compile(r"\{\s*\"")
_HERMES_OPEN, _HERMES_CLOSE = "<tool_call>", "</tool_call>"
_MAX_JSON_ATTEMPTS = 64
"""Failed decodes of one message before bare JSON calls are given up: each may cost a pass over the text."""
_JSON = json.JSONDecoder()


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
        extents = [_Extent(SegmentKind.CALL, 0, ends[last - 1])] if last else []
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


def hermes_calls(text: str) -> tuple[TextCall, ...]:
    """Calls written as `<tool_call>{"name": ..., "arguments": ...}</tool_call>`, for servers without a call parser."""
    bodies = [text[e.start : e.stop] for e in _delimited_calls(text) if text.startswith(_HERMES_OPEN, e.start)]
    return tuple(_parse_call(b.removeprefix(_HERMES_OPEN).removesuffix(_HERMES_CLOSE).strip()) for b in bodies)


def has_call_text(spans: Sequence[Span]) -> bool:
    """Whether any token spells a call."""
    return any(span.kind is SegmentKind.CALL for span in spans)


def _parse_call(body: str) -> TextCall:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return TextCall(None, body)
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return TextCall(None, body)
    arguments = value.get("arguments", value.get("parameters", {}))
    return TextCall(value["name"], arguments if isinstance(arguments, str) else json.dumps(arguments))


def _markup(text: str, call_names: Sequence[str]) -> Iterator[_Extent]:
    """Calls and delimiters in the text, calls first."""
    channels = list(_channels(text))
    calls = [e for e in channels if e.kind is SegmentKind.CALL]
    calls += _delimited_calls(text)
    if not calls and call_names:
        calls = list(_bare_json_calls(text, frozenset(call_names)))
    yield from calls
    delimiters = [e for e in channels if e.kind is SegmentKind.CONTROL]
    delimiters += [_Extent(SegmentKind.CONTROL, m.start(), m.end()) for m in _THINK_TAG.finditer(text)]
    for extent in delimiters:
        # A think tag quoted inside a call's arguments is part of the call.
        if not any(call.start < extent.stop and extent.start < call.stop for call in calls):
            yield extent


def _delimited_calls(text: str) -> Iterator[_Extent]:
    """Calls between delimiters; a delimiter that is only mentioned while thinking opens none."""
    tags = list(_THINK_TAG.finditer(text))
    tag_starts, position = [tag.start() for tag in tags], 0
    while match := _DELIMITED_CALL.search(text, position):
        following = bisect_left(tag_starts, match.start())
        if following < len(tags) and tags[following][0] == "</think>":
            position = tags[following].end()
            continue
        yield _Extent(SegmentKind.CALL, match.start(), match.end())
        position = match.end()


def _channels(text: str) -> Iterator[_Extent]:
    """gpt-oss: `<|channel|>analysis<|message|>...<|end|>`; a header with `to=` addresses a tool."""
    if "<|channel|>" not in text:
        return
    for match in _CHANNEL.finditer(text):
        if "to=" not in match[0]:
            yield _Extent(SegmentKind.CONTROL, match.start(), match.end())
            continue
        end = _CHANNEL_END.search(text, match.end())
        stop = len(text) if end is None else (end.end() if end[0] == "<|call|>" else end.start())
        yield _Extent(SegmentKind.CALL, match.start(), stop)


def _bare_json_calls(text: str, names: frozenset[str]) -> Iterator[_Extent]:
    """JSON objects in the text whose "name" is one of the calls that the server parsed."""
    position, failed = 0, 0
    while failed < _MAX_JSON_ATTEMPTS and (match := _JSON_START.search(text, position)):
        try:
            value, stop = _JSON.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            position, failed = match.start() + 1, failed + 1
            continue
        position = stop
        if isinstance(value, dict) and _call_name(value) in names:
            yield _Extent(SegmentKind.CALL, match.start(), stop)


def _call_name(value: dict[str, object]) -> object:
    inner = value.get("function")
    name = inner.get("name") if isinstance(inner, dict) else value.get("name", inner)
    return name if isinstance(name, str) else None


def _paint(kinds: list[SegmentKind], tokens: Sequence[str], ends: Sequence[int], extent: _Extent) -> bool:
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


def _call_starts(extents: Sequence[_Extent], ends: Sequence[int]) -> frozenset[int]:
    """First token of each call, so that calls that touch stay two spans."""
    return frozenset(bisect_right(ends, e.start) for e in extents if e.kind is SegmentKind.CALL)


def _runs(kinds: Sequence[SegmentKind], breaks: frozenset[int]) -> Iterator[Span]:
    start = 0
    for t in range(1, len(kinds) + 1):
        if t == len(kinds) or kinds[t] is not kinds[start] or t in breaks:
            yield Span(kinds[start], start, t)
            start = t

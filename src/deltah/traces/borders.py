"""Borders inside one message: which of its tokens spell a call, only delimit, or are reasoning."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

import msgspec

from deltah.core.types import SegmentKind
from deltah.traces.dialects import (
    CHANNEL,
    CLOSING,
    END_TOKENS,
    THINK_TAG,
    call_extents,
    json_call_extents,
    json_calls,
    parse_calls,
    without_end_tokens,
    written_calls,
)
from deltah.traces.logprobs import PackedTokens
from deltah.traces.openai_schema import FunctionCall, Message, message_text

Extent: TypeAlias = tuple[int, int]
"""Half-open run of characters."""
_HAS_ARGUMENTS = re.compile('"(?:arguments|parameters)"')
_CLOSED = re.compile(rf"(?:\s|{CLOSING.pattern})*")
_OTHER = rf"(?!{'|'.join(map(re.escape, sorted(END_TOKENS)))}|</?think>|<\|(?:start|channel|constrain|message)\|>)"
_OPENS = re.compile(rf"(?:\s|\[|```\w*|functools|{_OTHER}<[^<>\s/][^<>\s]*>)*\Z")
_CLOSES = re.compile(rf"(?:\s|\]|```|{_OTHER}<(?:/[^<>\s]+|\|[^<>\s]+\||[^<>\s]+\|)>)*")
_LONGEST_OPENING = 200  # characters of marks before a call
_UNREADABLE = re.compile(r"[\s\d\ufffd]+")  # ids, or characters that were lost


class Span(NamedTuple):
    """Half-open run of tokens of one kind; of characters, while borders are looked for."""

    kind: SegmentKind
    start: int
    stop: int


class Parsed(NamedTuple):
    """A message whose calls the server took out of its text."""

    calls: Sequence[FunctionCall]
    thought: str
    content: str

    def begin(self, text: str) -> int | None:
        """Where the visible text ends in what was sampled, and calls may begin; None where it is not in it."""
        after_thought = max(text.rfind("</think>") + len("</think>"), 0) if "</think>" in text else 0
        if content := self.content.strip():
            at = text.find(content, after_thought)
            return None if at < 0 else at + len(content)
        thought = self.thought.strip()
        at = text.find(thought) if thought else -1
        return max(after_thought, at + len(thought)) if at >= 0 else after_thought

    def ends(self, text: str) -> bool:
        """Whether what was sampled ends with the visible text, so that it spells no call."""
        begin = self.begin(text)
        return begin is not None and not CLOSING.sub("", without_end_tokens(text[begin:])).strip()

    def is_spelled(self, text: str) -> bool:
        """Whether a text shows anything of the calls."""
        if not self.content.strip() and not self.thought.strip():
            return bool(CLOSING.sub("", text).strip())  # a forced tool choice samples the arguments alone
        shown = [part for call in self.calls for part in (call.name, call.arguments) if part and isinstance(part, str)]
        return any(part in text for part in shown)


class MessageSpans(NamedTuple):
    """Partition of one message's tokens."""

    spans: tuple[Span, ...]
    exact: bool
    """False where a border lies inside a token."""


def split_message(
    tokens: Sequence[str], call_names: Sequence[str] = (), *, parsed: Parsed | None = None
) -> MessageSpans:
    """Partition the tokens of one assistant message, by their texts alone.

    A call is text between the marks of a dialect, a channel of gpt-oss that addresses a tool, bare JSON that names one
    of `call_names`, or, where the server parsed the calls, what follows the visible text. Control are end-of-turn
    tokens, think tags, marks that close a call, channel headers and white space beside them and calls; reasoning is the
    rest, or unplaced where a call is spelled and its beginning cannot be told. A token that a border cuts goes to
    the call or control side.
    """
    tokens = _with_white_space(tokens)
    ends = list(accumulate(map(len, tokens)))
    text = "".join(tokens)
    extents, unplaced = _calls_in(text, call_names, parsed)
    kinds, exact = [SegmentKind.REASONING] * len(tokens), True
    for start, stop in extents:
        exact &= _paint(kinds, tokens, ends, Span(SegmentKind.CALL, start, stop))
    for start, stop in _delimiters(text, extents):
        exact &= _paint(kinds, tokens, ends, Span(SegmentKind.CONTROL, start, stop))
    for t, token in enumerate(tokens):
        if token in END_TOKENS and kinds[t] is SegmentKind.REASONING:
            kinds[t] = SegmentKind.CONTROL
    if tokens and not tokens[-1] and kinds[-1] is SegmentKind.REASONING:
        kinds[-1] = SegmentKind.CONTROL  # llama.cpp's own server prints the end token as nothing
    _absorb_white_space(kinds, tokens)
    # Calls that touch stay two spans.
    starts = frozenset(bisect_right(ends, start) for start, _ in extents)
    if unplaced:
        kinds = [SegmentKind.UNPLACED if kind is SegmentKind.REASONING else kind for kind in kinds]
    return MessageSpans(tuple(_runs(kinds, starts)), exact)


def _calls_in(text: str, call_names: Sequence[str], parsed: Parsed | None) -> tuple[list[Extent], bool]:
    """Runs of characters that spell calls, and whether more is a call, one knows not which."""
    extents = sorted(call_extents(text))
    names = frozenset(filter(None, call_names))
    missing = parsed is not None and len(extents) < len(call_names) and _n_spelled(text, extents) < len(call_names)
    if names and (not extents or missing):
        extents = sorted([*extents, *(e for e in json_call_extents(text, names) if not _touches(extents, e))])
    closed = [(start, _CLOSED.match(text, stop).end()) for start, stop in extents]  # type: ignore[union-attr]
    last_thought = text.rfind("</think>")
    unopened = any(m.start() > last_thought and not _touches(closed, m.span()) for m in CLOSING.finditer(text))
    if not text or (extents and not unopened):
        return _with_marks(text, extents, parsed) if extents else [], False
    begin = None if parsed is None else parsed.begin(text)
    if parsed is not None and begin is not None:
        if parsed.is_spelled(text[begin:]) and begin < (end := len(without_end_tokens(text))):
            return [*(e for e in extents if e[1] <= begin), (begin, end)], False
        return extents, False  # the logprobs stop at the visible text, but for a mark
    spelled = "{" in text if parsed is None else parsed.is_spelled(text)
    return extents, spelled and (unopened or parsed is not None)


def _with_marks(text: str, extents: Sequence[Extent], parsed: Parsed | None) -> list[Extent]:
    """Calls with the brackets, tags and fences around them, and all from the visible text on; no white space beside."""
    wide, content = list[Extent](), parsed.content.strip() if parsed is not None else ""
    first = extents[0][0]
    shown = text.rfind(content, max(text.rfind("</think>", 0, first), 0), first) if content else -1
    before = shown + len(content) if shown >= 0 else 0
    for (start, stop), (following, _) in zip(extents, [*extents[1:], (len(text), 0)], strict=True):
        before = min(before, start)  # extents may overlap
        opens = _OPENS.search(text, max(before, start - _LONGEST_OPENING), start).start()  # type: ignore[union-attr]
        gap = text[before:opens]
        if (wide and not gap.strip(" \n,;")) or (shown >= 0 and "<think>" not in gap and "<|channel|>" not in gap):
            opens = before
        before = stop + len(_CLOSES.match(text, stop, max(stop, following))[0].rstrip())  # type: ignore[index]
        wide.append((start - len(text[opens:start].lstrip()), before))
    return wide


def _with_white_space(tokens: Sequence[str]) -> Sequence[str]:
    """White space in place of the marks that some servers print for it, those of byte-level BPE."""
    shown = any(" " in token for token in tokens)
    return tokens if shown else [token.replace("Ġ", " ").replace("Ċ", "\n") for token in tokens]


def _n_spelled(text: str, extents: Sequence[Extent]) -> int:
    return sum(len(parse_calls(text[start:stop])) for start, stop in extents)


def _touches(extents: Sequence[Extent], one: Extent) -> bool:
    """Whether a run of characters lies in one of these, or overlaps it; in order, and apart from one another."""
    at = bisect_left(extents, one[1], key=lambda extent: extent[0]) - 1
    return at >= 0 and extents[at][1] > one[0]


def _delimiters(text: str, calls: Sequence[Extent]) -> Iterator[Extent]:
    """Think tags, marks that close calls, and headers of channels; one quoted inside a call is part of the call."""
    last_thought = text.rfind("</think>")
    for pattern in (THINK_TAG, CLOSING, CHANNEL):
        for match in pattern.finditer(text):
            mentioned = pattern is CLOSING and match.start() < last_thought
            if not mentioned and not _touches(calls, match.span()):
                yield match.span()


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


def _runs(kinds: Sequence[SegmentKind], breaks: frozenset[int]) -> Iterator[Span]:
    start = 0
    for t in range(1, len(kinds) + 1):
        if t == len(kinds) or kinds[t] is not kinds[start] or t in breaks:
            yield Span(kinds[start], start, t)
            start = t


def calls_of(message: Message, sampled: str, *, answered: bool = False) -> list[FunctionCall]:
    """Calls of an assistant's message: those that the server parsed, else those that its text spells.

    Where a tool's result follows (`answered`), JSON of a call inside prose is one, too.
    """
    calls = [call.function for call in message.tool_calls or []]
    if not calls and message.function_call is not None:
        calls = [message.function_call]
    if any(call.parameters is not None for call in calls):
        calls = [FunctionCall(call.name, call.arguments or call.parameters) for call in calls]
    if calls and all(call.name for call in calls):
        return calls
    content = message_text(message.content)
    spelled = written_calls(sampled) or written_calls(content)
    # Some models call tools while they think, and say nothing.
    written = spelled or ([] if content.strip() else written_calls(message.reasoning_content or ""))
    if not (written or calls) and answered:
        text = sampled or content
        bare = (text[start:stop] for start, stop in json_call_extents(text))
        written = [call for one in bare if _HAS_ARGUMENTS.search(one) for call in json_calls(one)]
    return written if not calls or len(written) == len(calls) else calls


def spans_of(message: Message, tokens: PackedTokens, parsed: Parsed) -> MessageSpans:
    """Partition of a message's tokens; without texts that can be read they are one run, of which nothing is known."""
    sampled = "".join(tokens.texts).strip() if tokens.has_texts and parsed.calls else ""
    if not tokens.has_texts or (_UNREADABLE.fullmatch(sampled) and not parsed.begin(sampled)):
        return MessageSpans((Span(SegmentKind.UNPLACED, 0, len(tokens)),), exact=False)
    names = [call.name or "" for call in parsed.calls]
    is_parsed = bool(parsed.calls) and (bool(message.tool_calls or message.function_call) or not parsed.content.strip())
    return split_message(tokens.texts, names, parsed=parsed if is_parsed else None)


def name_in(block: str) -> str | None:
    """Tool that a result names itself, as the Hermes template has it."""
    with suppress(ValueError, RecursionError):
        value = msgspec.json.decode(block)
        if isinstance(value, dict) and isinstance(value.get("name"), str):
            return str(value["name"])
    return None


def tool_part(part: Any) -> str | None:
    """Type of a part that looks like a call or a result, which no part of a message's text is."""
    kind = part.get("type") if isinstance(part, dict) and "text" not in part else None
    return kind if isinstance(kind, str) and ("tool" in kind.lower() or "function" in kind.lower()) else None

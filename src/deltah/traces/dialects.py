r"""Tool calls in the text of models: one table of dialects, and what of a message is call, delimiter or reasoning.

A dialect has a mark that opens its calls, one that closes them, and a parser of what stands between. Dialects may share
their marks: the first parser that finds a call counts. What no parser takes is one call without a name whose arguments
are the text. Not in the table: Python-like calls and the marks of Gemma 4 and LFM2.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Final, NamedTuple

from deltah.core.types import SegmentKind
from deltah.traces.openai_schema import FunctionCall

END_TOKENS: Final = frozenset({
    "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "</s>",
    "<eos>", "<end_of_turn>", "<|end_of_turn|>", "<|eot|>", "<｜end▁of▁sentence｜>",
})  # fmt: skip
"""Special tokens that end a turn; only a whole token counts, the same text spelled out is prose."""
THINK_TAG: Final = re.compile(r"</?think>")
_CHANNEL = re.compile(r"(?:<\|start\|>[^<]*)?<\|channel\|>(?P<header>[^<]*(?:<\|constrain\|>[^<]*)?)<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:end|call|return|start|channel)\|>")
_JSON_START = re.compile(r"\{\s*\"")
_MAX_JSON_ATTEMPTS = 64  # failed decodes, each of which may cost a pass over the text of a message
_JSON = json.JSONDecoder()


class Dialect(NamedTuple):
    """One way to spell calls: its marks (no closing one: to the end) and a parser, empty for a text of another."""

    name: str
    opening: str
    closing: str
    parse: Callable[[str], list[FunctionCall]]


def json_calls(body: str) -> list[FunctionCall]:
    """Calls in a JSON object or a list of objects; none if any of it is not a call."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return []
    calls = [_json_call(item) for item in (value if isinstance(value, list) else [value])]
    return [] if None in calls else [call for call in calls if call is not None]


def _json_call(value: Any) -> FunctionCall | None:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    name = value.get("name", value.get("function")) if isinstance(value, dict) else None
    if not isinstance(name, str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    return FunctionCall(name=name, arguments=arguments if isinstance(arguments, str) else json.dumps(arguments))


def _paired(body: str, call: str, argument: str) -> list[FunctionCall]:
    """Calls of a pattern (name, text of the arguments) whose arguments are those of a pattern (key, value)."""
    return [
        FunctionCall(name=name.strip(), arguments=json.dumps(dict(re.findall(argument, inner, re.DOTALL))))
        for name, inner in re.findall(call, body, re.DOTALL)
    ]


def _coder_calls(body: str) -> list[FunctionCall]:
    """`<function=name><parameter=key>value</parameter></function>`."""
    parameter = r"<parameter=([^>\n]+)>\n?(.*?)\n?(?:</parameter>|\Z)"
    return _paired(body, r"<function=([^>\n]+)>(.*?)(?:</function>|\Z)", parameter)


def _glm_calls(body: str) -> list[FunctionCall]:
    """`name`, then `<arg_key>key</arg_key><arg_value>value</arg_value>`."""
    pair = r"<arg_key>([^<]*)</arg_key>\s*<arg_value>(.*?)</arg_value>"
    return _paired(body, r"\A(.*?)(<arg_key>.*)", pair) if re.search(pair, body, re.DOTALL) else []


def _mistral_calls(body: str) -> list[FunctionCall]:
    """A JSON list; or `name[ARGS]{...}`, further calls after a mark of their own."""
    parts = [part.partition("{") for part in body.split("[TOOL_CALLS]")]
    named = [(re.split(r"\[(?:ARGS|CALL_ID)\]", head)[0].strip(), brace + rest) for head, brace, rest in parts]
    plain = all(name and not name.startswith("[") and arguments for name, arguments in named)
    return [FunctionCall(name=name, arguments=arguments.strip()) for name, arguments in named] if plain else []


def _deepseek_calls(body: str) -> list[FunctionCall]:
    """`name<｜tool▁sep｜>{...}`; in V3 `function<｜tool▁sep｜>name` and the arguments as a block of code."""
    begin, separator, end = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
    pattern = rf"{begin}(?:function{separator})?(\S+?)(?:{separator}|\n```json\n)(.*?)(?:\n```)?(?:{end}|\Z)"
    return _named(pattern, body)


def _kimi_calls(body: str) -> list[FunctionCall]:
    """`functions.name:0<|tool_call_argument_begin|>{...}`."""
    begin, separator, end = map(re.escape, ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"))
    return _named(rf"{begin}\s*(?:functions\.)?(\S+?)(?::\d+)?\s*{separator}(.*?)(?:{end}|\Z)", body)


def _named(pattern: str, body: str) -> list[FunctionCall]:
    """Calls of a pattern with two groups, name and arguments."""
    return [FunctionCall(name=name, arguments=arguments.strip()) for name, arguments in re.findall(pattern, body, re.S)]


DIALECTS: Final = (
    Dialect("hermes", "<tool_call>", "</tool_call>", json_calls),
    Dialect("qwen3-coder", "<tool_call>", "</tool_call>", _coder_calls),
    Dialect("glm", "<tool_call>", "</tool_call>", _glm_calls),
    Dialect("llama", "<|python_tag|>", "", json_calls),
    Dialect("mistral", "[TOOL_CALLS]", "", json_calls),
    Dialect("mistral-v11", "[TOOL_CALLS]", "", _mistral_calls),
    Dialect("deepseek", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", _deepseek_calls),
    Dialect("kimi", "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", _kimi_calls),
)
"""Every dialect; of those that share marks the first whose parser finds a call counts."""
_ANY_CALL = re.compile(
    "|".join(
        re.escape(opening) + (rf".*?(?:{re.escape(closing)}|\Z)" if closing else r".*\Z")
        for opening, closing in dict.fromkeys((dialect.opening, dialect.closing) for dialect in DIALECTS)
    ),
    re.DOTALL,
)


def call_extents(text: str) -> Iterator[tuple[int, int]]:
    """Half-open runs of characters that spell calls, marks included; a mark mentioned while thinking opens none."""
    if (match := _ANY_CALL.search(text)) is None:
        return
    tags = list(THINK_TAG.finditer(text))
    tag_starts = [tag.start() for tag in tags]
    while match is not None:
        following = bisect_left(tag_starts, match.start())
        mentioned = following < len(tags) and tags[following][0] == "</think>"
        if not mentioned:
            yield match.span()
        match = _ANY_CALL.search(text, tags[following].end() if mentioned else match.end())


def json_call_extents(text: str, names: frozenset[str]) -> Iterator[tuple[int, int]]:
    """Runs of characters that are a JSON object whose "name" is one of `names`."""
    position, failed = 0, 0
    while failed < _MAX_JSON_ATTEMPTS and (match := _JSON_START.search(text, position)):
        try:
            value, position = _JSON.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            position, failed = match.start() + 1, failed + 1
            continue
        call = _json_call(value)
        if call is not None and call.name in names:
            yield match.start(), position


def parse_calls(markup: str) -> list[FunctionCall]:
    """Calls that one run of call text spells, marks included; at least one."""
    body = markup
    for dialect in DIALECTS:
        if markup.startswith(dialect.opening):
            body = without_end_tokens(markup.removeprefix(dialect.opening)).removesuffix(dialect.closing).strip()
            if calls := dialect.parse(body):
                return calls
    return [FunctionCall(name=None, arguments=body)]


def without_end_tokens(text: str) -> str:
    """Without the white space and special tokens, padding included, that close a turn."""
    end = len(text)
    while True:
        while end and text[end - 1].isspace():
            end -= 1
        token = next((token for token in END_TOKENS if text.endswith(token, 0, end)), None)
        if token is None:
            return text[:end]
        end -= len(token)


def written_calls(text: str) -> list[FunctionCall]:
    """Calls that a message spells between marks, in order."""
    return [call for start, stop in call_extents(text) for call in parse_calls(text[start:stop])]


class Span(NamedTuple):
    """Half-open run of tokens of one kind; of characters, while borders are looked for."""

    kind: SegmentKind
    start: int
    stop: int


class MessageSpans(NamedTuple):
    """Partition of one message's tokens; `exact` is False where a border lies inside a token."""

    spans: tuple[Span, ...]
    exact: bool


def split_message(tokens: Sequence[str], call_names: Sequence[str] = (), *, only_calls: bool = False) -> MessageSpans:
    """Partition the tokens of one assistant message, by their texts alone.

    A call is text between the marks of a dialect, a channel of gpt-oss that addresses a tool, or bare JSON that names
    one of `call_names`; with `only_calls` (a forced tool choice samples the arguments alone) any text. Control are
    end-of-turn tokens, think tags, channel headers and white space beside them and calls; reasoning is the rest. A
    token that a border cuts goes to the call or control side.
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
    # Calls that touch stay two spans.
    starts = frozenset(bisect_right(ends, extent.start) for extent in extents if extent.kind is SegmentKind.CALL)
    return MessageSpans(tuple(_runs(kinds, starts)), exact)


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


def _runs(kinds: Sequence[SegmentKind], breaks: frozenset[int]) -> Iterator[Span]:
    start = 0
    for t in range(1, len(kinds) + 1):
        if t == len(kinds) or kinds[t] is not kinds[start] or t in breaks:
            yield Span(kinds[start], start, t)
            start = t

r"""Tool calls in the text of models: one table of dialects, and where calls stand in a text.

A dialect has a mark that opens its calls, one that closes them, and a parser of what stands between. Dialects may share
their marks: the first parser that finds a call counts. What no parser takes is one call without a name whose arguments
are the text. A text that is nothing but JSON of calls needs no marks. Not in the table: the marks of Gemma 4.
"""

from __future__ import annotations

import ast
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple

from deltah.traces.openai_schema import FunctionCall

END_TOKENS: Final = frozenset({
    "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "</s>",
    "<eos>", "<end_of_turn>", "<|end_of_turn|>", "<|eot|>", "<｜end▁of▁sentence｜>",
})  # fmt: skip
"""Special tokens that end a turn; only a whole token counts, the same text spelled out is prose."""
THINK_TAG: Final = re.compile(r"</?think>")
CHANNEL: Final = re.compile(r"(?:<\|start\|>[^<]*)?<\|channel\|>[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
"""Header of a channel of gpt-oss; one with `to=` addresses a tool."""
_ADDRESSEE = re.compile(r"to=(?:functions\.)?([^\s<]+)")
_CHANNEL_END = re.compile(r"<\|(?:end|call|return|start|channel)\|>")
_JSON_START = re.compile(r"\{\s*\"")
_MAX_JSON_ATTEMPTS = 64  # failed decodes, each of which may cost a pass over the text of a message
_JSON = json.JSONDecoder()
_BETWEEN = re.compile(r"[\s;,]*")
_MAX_LITERAL = 100_000
_BARE_CALL = re.compile(r'\s*(?:\[\s*)?\{.*"(?:arguments|parameters)"', re.DOTALL)
_CALL_KEYS = frozenset({"id", "type", "name", "function", "arguments", "parameters"})


class Dialect(NamedTuple):
    """One way to spell calls: its marks (no closing one: to the end) and a parser, empty for a text of another."""

    name: str
    opening: str
    closing: str
    parse: Callable[[str], list[FunctionCall]]


def json_calls(body: str) -> list[FunctionCall]:
    """Calls in JSON objects or lists of them, one after the other; none if any of it is not a call."""
    calls = [
        _json_call(item) for value in _json_values(body) for item in (value if isinstance(value, list) else [value])
    ]
    return [] if None in calls else [call for call in calls if call is not None]


def _json_values(body: str) -> list[Any]:
    """JSON values, or one Python literal; empty if any of the text is neither."""
    values, position = list[Any](), 0
    try:
        while position < len(body):
            value, position = _JSON.raw_decode(body, position)
            values.append(value)
            position = _BETWEEN.match(body, position).end()  # type: ignore[union-attr]  # it matches nothing, too
    except (ValueError, RecursionError):
        values = []
        if body.startswith(("{'", "[{'")) and len(body) < _MAX_LITERAL:
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                values = [ast.literal_eval(body)]
    return values


def _json_call(value: Any) -> FunctionCall | None:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    found = (value.get(key) for key in ("name", "function", "tool_name")) if isinstance(value, dict) else ()
    name = next((name for name in found if isinstance(name, str)), None)
    if name is None:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    return FunctionCall(name=name, arguments=arguments if isinstance(arguments, str) else json.dumps(arguments))


def bare_calls(text: str) -> list[FunctionCall]:
    """Calls of a text that is nothing but JSON objects with a name and arguments, as Llama writes them."""
    if not _BARE_CALL.match(text) or "</think>" in text:
        return []
    values = _json_values(without_end_tokens(text).strip())
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    plain = all(isinstance(item, dict) and item.keys() <= _CALL_KEYS for item in items)
    return json_calls(without_end_tokens(text).strip()) if plain else []


def _paired(body: str, call: str, argument: str) -> list[FunctionCall]:
    """Calls of a pattern (name, text of the arguments) whose arguments are those of a pattern (key, value)."""
    return [
        FunctionCall(name=name.strip(), arguments=json.dumps(dict(re.findall(argument, inner, re.DOTALL))))
        for name, inner in re.findall(call, body, re.DOTALL)
    ]


def _coder_calls(body: str) -> list[FunctionCall]:
    """`<function=name><parameter=key>value</parameter></function>`."""
    parameter = r"<parameter=([^<>\n]+)>\n?(.*?)\n?(?:</parameter>|\Z)"
    return _paired(body, r"<function=([^<>\n]+)>(.*?)(?:</function>|\Z)", parameter)


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


def _function_calls(body: str) -> list[FunctionCall]:
    """What follows `<function=`: `name>`, then an object, or parameters as in Qwen3-Coder."""
    name, _, arguments = body.partition(">")
    if arguments.lstrip().startswith("{"):
        return [FunctionCall(name=name.strip(), arguments=arguments.strip())]
    return _coder_calls(f"<function={body}")


def _invoke_calls(body: str) -> list[FunctionCall]:
    """`<invoke name="f"><parameter name="key">value</parameter></invoke>`, of MiniMax, DeepSeek 3.2 and others."""
    parameter = r'<(?:｜DSML｜)?parameter name="([^"]+)"[^>]*>\n?(.*?)\n?(?:</(?:｜DSML｜)?parameter>|\Z)'
    return _paired(body, r'<(?:｜DSML｜)?invoke name="([^"]+)"[^>]*>(.*?)(?:</(?:｜DSML｜)?invoke>|\Z)', parameter)


def _python_calls(body: str) -> list[FunctionCall]:
    """`[f(key="value"), g()]`."""
    try:
        tree = ast.parse(body, mode="eval").body if len(body) < _MAX_LITERAL else None
        listed = tree.elts if isinstance(tree, ast.List) else [tree]
        return [
            FunctionCall(
                name=ast.unparse(call.func),
                arguments=json.dumps({word.arg or "": ast.literal_eval(word.value) for word in call.keywords}),
            )
            for call in listed
            if isinstance(call, ast.Call)
        ]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return []


def _channel_calls(markup: str) -> list[FunctionCall]:
    """The call of a channel of gpt-oss: the tool that its header addresses, and the message."""
    header = CHANNEL.match(markup)
    name = None if header is None else _ADDRESSEE.search(header[0])
    if header is None or name is None:
        return []
    return [FunctionCall(name=name[1], arguments=markup[header.end() :].removesuffix("<|call|>").strip())]


DIALECTS: Final = (
    Dialect("hermes", "<tool_call>", "</tool_call>", json_calls),
    Dialect("qwen3-coder", "<tool_call>", "</tool_call>", _coder_calls),
    Dialect("glm", "<tool_call>", "</tool_call>", _glm_calls),
    Dialect("llama", "<|python_tag|>", "", json_calls),
    Dialect("mistral", "[TOOL_CALLS]", "", json_calls),
    Dialect("mistral-v11", "[TOOL_CALLS]", "", _mistral_calls),
    Dialect("deepseek", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", _deepseek_calls),
    Dialect("kimi", "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", _kimi_calls),
    Dialect("functions", "<function=", "</function>", _function_calls),
    Dialect("minimax", "<minimax:tool_call>", "</minimax:tool_call>", _invoke_calls),
    Dialect("deepseek-v3.2", "<｜DSML｜function_calls>", "</｜DSML｜function_calls>", _invoke_calls),
    Dialect("invoke", "<function_calls>", "</function_calls>", _invoke_calls),
    Dialect("seed", "<seed:tool_call>", "</seed:tool_call>", _coder_calls),
    Dialect("phi", "<|tool_call|>", "<|/tool_call|>", json_calls),
    Dialect("nemotron", "<TOOLCALL>", "</TOOLCALL>", json_calls),
    Dialect("cohere", "<|START_ACTION|>", "<|END_ACTION|>", json_calls),
    Dialect("lfm2", "<|tool_call_start|>", "<|tool_call_end|>", _python_calls),
    Dialect("llama4", "<|python_start|>", "<|python_end|>", _python_calls),
)
"""Every dialect; of those that share marks the first whose parser finds a call counts."""
_ANY_CALL = re.compile(
    "|".join(
        re.escape(opening) + (rf".*?(?:{re.escape(closing)}|\Z)" if closing else r".*\Z")
        for opening, closing in dict.fromkeys((dialect.opening, dialect.closing) for dialect in DIALECTS)
    ),
    re.DOTALL,
)
CLOSING: Final = re.compile(
    "|".join(
        re.escape(mark)
        for mark in (*dict.fromkeys(d.closing for d in DIALECTS if d.closing), "<｜tool▁call▁end｜>", "<|call|>")
    )
)
"""Marks that close calls: never reasoning, even without the one that opens."""
RESULT_BLOCK: Final = re.compile(
    r"<(tool_(?:response|result|output)|function_(?:results?|response))>\n?(?P<text>.*?)\n?(?:</\1>|\Z)", re.DOTALL
)
"""A tool's result inside the text of a user's message."""


def call_extents(text: str) -> Iterator[tuple[int, int]]:
    """Half-open runs of characters that spell calls, marks included; a mark mentioned while thinking opens none."""
    if "<|channel|>" in text:
        yield from _channel_extents(text)
    if (match := _ANY_CALL.search(text)) is None:
        if CLOSING.search(text) is not None:
            yield from _unopened(text)
        return
    tags = list(THINK_TAG.finditer(text))
    tag_starts = [tag.start() for tag in tags]
    while match is not None:
        following = bisect_left(tag_starts, match.start())
        mentioned = following < len(tags) and tags[following][0] == "</think>"
        if not mentioned:
            yield match.span()
        match = _ANY_CALL.search(text, tags[following].end() if mentioned else match.end())


def _channel_extents(text: str) -> Iterator[tuple[int, int]]:
    for match in CHANNEL.finditer(text):
        if "to=" in match[0]:
            end = _CHANNEL_END.search(text, match.end())
            yield match.start(), len(text) if end is None else end.end() if end[0] == "<|call|>" else end.start()


def _unopened(text: str) -> Iterator[tuple[int, int]]:
    """JSON of calls right before a mark that closes them, whose opening one was lost."""
    for start, stop in json_call_extents(text):
        if (closing := CLOSING.match(text, _BETWEEN.match(text, stop).end())) is not None:  # type: ignore[union-attr]
            yield start, closing.end()


def json_call_extents(text: str, names: frozenset[str] | None = None) -> Iterator[tuple[int, int]]:
    """Runs of characters that are a JSON object whose "name" is one of `names`, or any."""
    position, failed = 0, 0
    while failed < _MAX_JSON_ATTEMPTS and (match := _JSON_START.search(text, position)):
        try:
            value, position = _JSON.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            position, failed = match.start() + 1, failed + 1
            continue
        call = _json_call(value)
        if call is not None and (names is None or call.name in names):
            yield match.start(), position


def parse_calls(markup: str) -> list[FunctionCall]:
    """Calls that one run of call text spells, marks included; at least one."""
    body = CLOSING.sub("", markup).strip() if markup.startswith("{") else markup
    if markup.startswith("<|") and (calls := _channel_calls(markup)):
        return calls
    for dialect in DIALECTS:
        if markup.startswith(dialect.opening):
            body = without_end_tokens(markup.removeprefix(dialect.opening)).removesuffix(dialect.closing).strip()
            if calls := dialect.parse(body):
                return calls
    if markup.startswith("{") and (calls := json_calls(body)):
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
    """Calls that a message spells, in order."""
    return [call for start, stop in call_extents(text) for call in parse_calls(text[start:stop])] or bare_calls(text)

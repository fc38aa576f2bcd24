"""What the text of one call shows: its normal form, what it may have changed, and what kind of answer it got.

Logs do not say which tools write, so effects are guessed from name and arguments. A guess errs towards "changes", which
hides waste; the other error would invent it. docs/waste.md states the rules.
"""

from __future__ import annotations

import io
import json
import re
import tokenize
import tomllib
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from deltah.core.types import CallStatus, ToolCall

Answer: TypeAlias = Literal["content", "nothing_found", "acknowledgement", "pending", "opaque", "failed", "absent"]
"""Kind of a result: "opaque" holds a medium that the log does not show, "acknowledgement" only says that it is done."""

SHORT_CHARS: Final = 400
"""Only answers up to this length are read as a message (pending, nothing found) instead of as content."""
MAX_QUERY_CHARS: Final = 2000
"""A longer query is compared as a whole only, not word by word."""
MAX_CODE_CHARS: Final = 50_000
"""Longer code is compared exactly only."""
_ACTION_KEYS: Final = ("action", "command", "operation", "op", "method", "mode")
"""Arguments that name an action."""
_WORDS: Final[dict[str, dict[str, Any]]] = tomllib.loads(Path(__file__).with_name("words.toml").read_text("utf-8"))
_TOOLS, _EFFECTS, _PROGRAMS, _ARGUMENTS = (
    {str(word): meaning for meaning, words in _WORDS[table].items() for word in words.split()}
    for table in ("tools", "effects", "programs", "arguments")
)
_PROGRAMS |= {word: meaning for word, meaning in _EFFECTS.items() if meaning == "reads"}
_SETS: Final = {name: frozenset(words.split()) for name, words in _WORDS["sets"].items()}
_PYTHON, _FILLER, _DONE, _WAITING = (_SETS[name] for name in ("python", "filler", "done", "waiting"))
_ACKNOWLEDGING: Final = _DONE | _SETS["acknowledging"]
_PENDING_HINTS: Final = _WAITING | _SETS["pending"]
_NOTHING_HINTS: Final = _SETS["nothing"]
_PYTHON_CHANGE, _SHELL_CHANGE, _NOTHING, _PENDING = (
    re.compile("|".join(_WORDS["patterns"][name])) for name in ("python_change", "shell_change", "nothing", "pending")
)
_PENDING_WORDS_AT_MOST: Final = 6

_NAME_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_QUERY_WORD = re.compile(r"[^\W_]+|!=|[-+*/^=<>%#&|~$€£@()\\]")
"""Words, and the symbols that change what is asked: `C#`, `-term`, `2 + 2`."""
_SPACE_OR_COMMENT = re.compile(r"#[^\n]*|\s+")
_SQL_READ = re.compile(r"\s*(?:select|with|explain|describe|show)\s", re.IGNORECASE)
_HARMLESS_REDIRECTION = re.compile(r"\d?>&\d|[\d&]?>\s*/dev/null")
_SHELL_COMMAND = re.compile(r"(?:^|[;&|\n(`])\s*(?:(?:sudo|time|env)\s+|\w+=\S*\s+)*([^\s;&|()`]+)")
_TRACEBACK = re.compile(r"\s*(?:Traceback \(most recent call last\)|[\w.]*(?:Error|Exception)(?::|\s*\Z))")
_MEDIUM = re.compile(r"\[(?:image|image_url|input_image|audio|input_audio|file|video|document|resource)\]")
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
_WORD = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")
_LOWER_OR_SPACE: Final = bytes(ord(chr(code).lower()) if chr(code).isalnum() else 32 for code in range(128)).ljust(256)
_JSON = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))


class _Tool(NamedTuple):
    """What a tool's name says: its arguments are code, a search or other; its effect; whether it runs Python."""

    kind: str
    effect: str
    python: bool


@lru_cache(maxsize=4096)
def tool_of(name: str) -> _Tool:
    """What a tool's name says, each by its first word that tells."""
    words = _name_words(name)
    return _Tool(
        kind=next((_TOOLS[word] for word in words if word in _TOOLS), "other"),
        effect=next((_EFFECTS[word] for word in words if word in _EFFECTS), "unknown"),
        python=not _PYTHON.isdisjoint(words),
    )


def _name_words(name: str) -> list[str]:
    """Words of a name in lower case, of `getUser` as of `get-user`."""
    return [word.lower() for word in _NAME_WORD.findall(name)]


def decode_arguments(arguments: str) -> object:
    """JSON object of the arguments, or their text without outer white space where they are none."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments.strip()
    return value if isinstance(value, Mapping) else arguments.strip()


@dataclass(slots=True, eq=False)
class CallText:
    """What the text of one call shows; `deltah.calls.waste` finds its epoch and the rest."""

    turn: int
    arguments: object
    loose: tuple[str, ...]
    """Equal for calls that agree in their normalised arguments; of code a necessary condition, see `same_code`."""
    code: tuple[str, ...]
    """Code that the call runs, as written."""
    query: frozenset[str]
    """Words of its free-text query; empty where it has none, or too long a one."""
    rest: tuple[str, ...]
    """Everything but the words of the query that hold no digit: queries are compared only where it agrees."""
    effect: str
    kind: Answer
    flat: str
    """Comparable form of the result; empty where there is none."""
    parts: tuple[str, ...]
    """Runs of the result that must be in context: the passages of a search, else the whole."""
    epoch: int = 0
    changing: bool = False
    """Whether the same call got another answer in the same epoch."""
    waste: set[str] = field(default_factory=set)

    @property
    def exact(self) -> str:
        """Equal for calls of one tool with equal arguments."""
        return _JSON.encode(self.arguments)

    @property
    def answered(self) -> bool:
        """Whether a later equal answer brings nothing."""
        return self.kind in ("content", "nothing_found") or (self.kind == "acknowledgement" and self.effect == "reads")


def read_call(call: ToolCall) -> CallText:
    """Read a call, without arguments that are null."""
    arguments, kind = decode_arguments(call.arguments), answer_kind(call)
    loose, fixed, code, words = [call.name], [call.name], list[str](), list[str]()
    fields = arguments.items() if isinstance(arguments, Mapping) else [("", arguments)]
    for key, value in sorted(item for item in fields if item[1] is not None):
        normal, query, source = _argument(key, value, tool_of(call.name).kind)
        loose += (key, normal)
        fixed += (key, "" if query else normal)
        words += query
        code += source
    flat = "" if call.result is None else flatten(call.result)
    return CallText(
        turn=call.turn,
        arguments=arguments,
        loose=tuple(loose),
        code=tuple(code),
        query=frozenset(words),
        rest=(*fixed, *sorted(word for word in words if not word.isalpha())),
        effect=effect_of(call.name, arguments),
        kind=kind,
        flat=flat,
        parts=tuple(passages(call.result or "")) if words and kind == "content" else (flat,),
    )


def _argument(key: str, value: object, tool: str) -> tuple[str, list[str], list[str]]:
    """Normal form of one argument, its words if it is a query, and itself if it is code."""
    kind = _ARGUMENTS.get(key.lower())
    if kind == "query" and value and isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = " ".join(value)
    if not isinstance(value, str):
        return _JSON.encode(value), [], []
    if "code" in (kind, tool):
        return _SPACE_OR_COMMENT.sub("", value), [], [value]
    folded = (value if value.isascii() else unicodedata.normalize("NFKC", value)).casefold()
    if (kind == "query" or (tool == "search" and not key)) and len(value) <= MAX_QUERY_CHARS:
        words = _QUERY_WORD.findall(folded)
        words = [word for word in words if word not in _FILLER] or words
        return " ".join(words), words, []
    return " ".join(folded.split()).strip("\"'`"), [], []


def same_code(a: CallText, b: CallText) -> bool:
    """Whether two calls of one loose form run code that differs only in comments and white space between tokens."""
    return all(map(_same_code, a.code, b.code))


def _same_code(a: str, b: str) -> bool:
    if a == b or max(len(a), len(b)) > MAX_CODE_CHARS:
        return a == b
    if (tokens := _python_tokens(a)) is not None:
        return tokens == _python_tokens(b)
    # A shell command or SQL is the same if its words are, and it holds no quote or comment.
    return not re.search(r"[\"'#\\\n]", a + b) and a.split() == b.split()


@lru_cache(maxsize=1024)
def _python_tokens(code: str) -> tuple[tuple[int, str], ...] | None:
    """Types and texts of the tokens of Python code, comments and blank lines left out; None if it is no Python."""
    skipped, blank = (tokenize.COMMENT, tokenize.NL), (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    try:
        tokens = [t for t in tokenize.generate_tokens(io.StringIO(code.strip()).readline) if t.type not in skipped]
    except (tokenize.TokenError, SyntaxError, ValueError):
        return None
    if any(token.type == tokenize.ERRORTOKEN for token in tokens):
        return None
    return tuple((token.type, "" if token.type in blank else token.string) for token in tokens)


def effect_of(name: str, arguments: object) -> str:
    """Whether a call reads, changes (also: lets time pass, draws at random) or is unknown, by name and arguments."""
    if isinstance(arguments, Mapping):  # an argument such as {"action": "click"} names it
        for value in map(arguments.get, _ACTION_KEYS):
            words = _name_words(value) if isinstance(value, str) and len(value) < 40 else []
            if len(words) in (1, 2) and words[0] in _EFFECTS:
                return _EFFECTS[words[0]]
    tool = tool_of(name)
    if tool.kind != "code":
        return tool.effect
    text = "\n".join(_texts(arguments))
    if _PYTHON_CHANGE.search(text):
        return "changes"
    return "unknown" if tool.python else _effect_of_shell(text)


def _texts(value: object) -> Iterator[str]:
    """All texts in decoded arguments, nested ones included, keys left out."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping):
            stack += item.values()
        elif isinstance(item, list):
            stack += item


def _effect_of_shell(text: str) -> str:
    """Effect of a shell command or SQL: it only reads if every program in it is known to."""
    if _SQL_READ.match(text):
        return "reads"
    text = _HARMLESS_REDIRECTION.sub("", text)
    effects = {_PROGRAMS.get(command.lower(), "changes") for command in _SHELL_COMMAND.findall(text)}
    if _SHELL_CHANGE.search(text) or "changes" in effects:
        return "changes"
    return "reads" if effects == {"reads"} else "unknown"


def answer_kind(call: ToolCall) -> Answer:
    """Classify the result of a call; a long text is content unless it is a failure."""
    text = call.result
    if text is None:
        return "absent"
    if call.status is CallStatus.ERROR or _TRACEBACK.match(text):
        return "failed"
    if "[" in text and _MEDIUM.search(text):
        return "opaque"
    return _message_kind(text.lower()) if len(text) <= SHORT_CHARS else "content"


def _message_kind(text: str) -> Answer:
    words = split_words(text)
    present = set(words)
    # The patterns cost more than all the rest; few answers hold a word that they can match.
    if not present.isdisjoint(_PENDING_HINTS):
        short = len(words) <= _PENDING_WORDS_AT_MOST and not present.isdisjoint(_WAITING)
        if short or _PENDING.search(text):
            return "pending"
    if not text.strip() or (present <= _ACKNOWLEDGING and not present.isdisjoint(_DONE)):
        return "acknowledgement"
    nothing = not present or (not present.isdisjoint(_NOTHING_HINTS) and _NOTHING.search(text))
    return "nothing_found" if nothing else "content"


def split_words(text: str) -> list[str]:
    """Runs of letters and digits in order and lower case; single characters of languages without spaces."""
    if not text.isascii():
        return _WORD.findall(text.casefold())
    return text.encode("ascii").translate(_LOWER_OR_SPACE).decode("ascii").split()  # several times faster


def flatten(text: str) -> str:
    """Comparable form of a text: brackets and white space are single spaces, fields that vary by run are left out."""
    return _flat(_without_volatile_fields(text))


def passages(text: str) -> list[str]:
    """Parts of a search result, flattened: records of a JSON list, else blocks between blank lines, else lines."""
    stripped = _without_volatile_fields(text).strip()
    if _JSON_START.match(stripped):
        parts = _RECORD_BORDER.split(stripped)
    else:
        blocks = _BLANK_LINE.split(stripped)
        parts = [_ORDINAL.sub("", part.lstrip(), count=1) for part in (blocks if blocks[1:] else stripped.split("\n"))]
    return [flat for part in parts if (flat := _flat(part)).strip()]


def _without_volatile_fields(text: str) -> str:
    """Text without fields of search engines that differ from run to run: score, time taken, request id."""
    return _VOLATILE_FIELD.sub("", text) if '"' in text and _JSON_START.match(text) else text


def _flat(text: str) -> str:
    for bracket in "[]{}":
        text = text.replace(bracket, " ")
    return f" {' '.join(text.split())} "

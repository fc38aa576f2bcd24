"""Normal forms of tool calls, and what a call does: when are two calls the same call, and what may one have changed?

Arguments are JSON objects, or raw text where they do not decode. Two calls have the same *exact form* if tool and
arguments agree but for the order of keys and the white space between them. They have the same *loose form* if they also
agree after this, argument by argument (arguments that are null are dropped):

* a search query: Unicode NFKC, lower case, punctuation, articles and forms of "to be" left out, order kept;
* code: white space and comments between tokens left out (strings and indentation count);
* other text: Unicode NFKC, lower case, outer quotes and runs of white space;
* numbers, booleans, lists and objects: as they are. So two pages of one list are never the same call.

`similarity` compares two queries as sets of words. Nothing here looks at results.

Does a call change the world, only look at it, or is that unknown? Logs do not say which tools write, so `effect_of`
guesses from name and arguments. The first word of the tool's name (or of an `action`-like argument) that is a known
verb decides. Tools that run code are judged by the code: Python changes something if it writes, sleeps or draws at
random, a shell command if any program in it is not known to only read or compute. The guess errs towards CHANGES: a
call taken for a change hides waste, a change taken for a look would invent it.
"""

from __future__ import annotations

import io
import json
import re
import tokenize
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

MAX_QUERY_CHARS: Final = 2000
"""A longer query is compared as a whole only, not word by word."""
MAX_CODE_CHARS: Final = 50_000
"""Longer code is compared exactly only."""


def word_set(text: str) -> frozenset[str]:
    """Words of a text, for closed lists of them."""
    return frozenset(text.split())


_FILLER: Final = word_set("a an are be been is of please s the was were")
_QUERY_KEYS: Final = word_set(
    """
    keyword keywords q queries query question search search_query search_term searchquery term terms
    """
)
_CODE_KEYS: Final = word_set("cell cmd code command program python script source sql")
_CODE_WORDS: Final = word_set(
    """
    bash cmd code command exec execute interpreter ipython jupyter notebook python repl run script sh shell sql
    terminal
    """
)
_LOOKING: Final = word_set("fetch find get list read show view")
_SEARCH_WORDS: Final = word_set("ask bing find google lookup query rag retrieval retrieve search wiki wikipedia")
_QUERY_WORD = re.compile(r"[^\W_]+|!=|[-+*/^=<>%#&|~$€£@()\\]")
"""Words, and the symbols that change what is asked: `C#`, `-term`, `2 + 2`."""
_NAME_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_SPACE_OR_COMMENT = re.compile(r"#[^\n]*|\s+")
_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))


class ToolKind(StrEnum):
    """What a tool's arguments are, as far as its name says."""

    CODE = "code"
    SEARCH = "search"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class CallForm:
    """One call, normalised."""

    name: str
    arguments: object
    """As `decode_arguments` gives them."""
    loose: tuple[str, ...]
    """Equal for calls that agree in their normalised arguments; for code a necessary condition, see `same_code`."""
    code: tuple[str, ...]
    """Code that the call runs, as written."""
    query: frozenset[str] | None
    """Words of its search query; None where it has none, or too long a one."""
    rest: tuple[str, ...]
    """Everything but the words of the query that hold no digit: queries are compared only where it agrees."""

    @property
    def exact(self) -> str:
        """Equal for the same call."""
        encoded = _ENCODER.encode(self.arguments) if isinstance(self.arguments, Mapping) else self.arguments
        return f"{self.name}\0{encoded}"

    @property
    def searches(self) -> bool:
        """Whether the call looks something up by a free-text query."""
        return self.query is not None


class _Part(NamedTuple):
    """One argument, normalised."""

    key: str
    normal: str
    query: tuple[str, ...] = ()
    code: str | None = None


def decode_arguments(arguments: str) -> object:
    """JSON value of the arguments, or their text without outer white space where they are no JSON object."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments.strip()
    return value if isinstance(value, Mapping) else arguments.strip()


def call_form(name: str, arguments: object) -> CallForm:
    """Normalise a call.

    Args:
        name: Of the tool.
        arguments: As `decode_arguments` gives them.
    """
    if isinstance(arguments, Mapping):
        fields = sorted((key, value) for key, value in arguments.items() if value is not None)
    else:
        fields = [("", arguments)]
    kind = tool_kind(name)
    parts = [_part(kind, key, value) for key, value in fields]
    words = [word for part in parts for word in part.query]
    fixed = [text for part in parts for text in (part.key, "" if part.query else part.normal)]
    return CallForm(
        name=name,
        arguments=arguments,
        loose=(name, *(text for part in parts for text in (part.key, part.normal))),
        code=tuple(part.code for part in parts if part.code is not None),
        query=frozenset(words) if words else None,
        rest=(name, *fixed, *sorted(word for word in words if not word.isalpha())),
    )


def similarity(a: CallForm, b: CallForm) -> float:
    """Jaccard similarity of the words of two queries, |A and B| / |A or B|; 0 if the calls differ in anything else.

    "Anything else" is the tool, another argument, or a word of the query that holds a digit.
    """
    if a.query is None or b.query is None or a.rest != b.rest:
        return 0.0
    return len(a.query & b.query) / len(a.query | b.query)


def same_code(a: str, b: str) -> bool:
    """Whether two pieces of Python differ in comments and in white space between tokens only.

    Code that is no Python (a shell command, SQL) is the same if its words are, and it holds no quote or comment.
    """
    if a == b or max(len(a), len(b)) > MAX_CODE_CHARS:
        return a == b
    tokens = python_tokens(a)
    if tokens is not None:
        return tokens == python_tokens(b)
    return not re.search(r"[\"'#\\\n]", a + b) and a.split() == b.split()


@lru_cache(maxsize=1024)
def python_tokens(code: str) -> tuple[tuple[int, str], ...] | None:
    """Types and texts of the tokens of Python code, comments and blank lines left out; None if it is no Python."""
    skipped, blank = (tokenize.COMMENT, tokenize.NL), (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    try:
        tokens = [t for t in tokenize.generate_tokens(io.StringIO(code.strip()).readline) if t.type not in skipped]
    except (tokenize.TokenError, SyntaxError, ValueError):
        return None
    if any(token.type == tokenize.ERRORTOKEN for token in tokens):
        return None
    return tuple((token.type, "" if token.type in blank else token.string) for token in tokens)


@lru_cache(maxsize=4096)
def tool_kind(name: str) -> ToolKind:
    """What a tool's arguments are, by the first telling word of its name."""
    for word in name_words(name):
        if word in _SEARCH_WORDS:
            return ToolKind.SEARCH
        if word in _CODE_WORDS:
            return ToolKind.CODE
        if word in _LOOKING:
            break
    return ToolKind.OTHER


def name_words(name: str) -> list[str]:
    """Words of a tool's name, lower case: `getUser`, `get_user` and `get-user` alike."""
    return [word.lower() for word in _NAME_WORD.findall(name)]


def strings(value: object) -> Iterator[str]:
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


def _part(kind: ToolKind, key: str, value: object) -> _Part:
    """Normalise one argument of a tool of a kind."""
    name = key.lower()
    if isinstance(value, list) and value and name in _QUERY_KEYS and all(isinstance(item, str) for item in value):
        value = " ".join(value)
    if not isinstance(value, str):
        return _Part(key, _ENCODER.encode(value))
    if kind is ToolKind.CODE or name in _CODE_KEYS:
        return _Part(key, _SPACE_OR_COMMENT.sub("", value), code=value)
    if (name in _QUERY_KEYS or (kind is ToolKind.SEARCH and not key)) and len(value) <= MAX_QUERY_CHARS:
        words = _QUERY_WORD.findall(_fold(value))
        words = [word for word in words if word not in _FILLER] or words
        return _Part(key, " ".join(words), query=tuple(words))
    return _Part(key, " ".join(_fold(value).split()).strip("\"'`"))


def _fold(text: str) -> str:
    return (text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold()


class Effect(StrEnum):
    """What a call does to the state that later calls look at."""

    READS = "reads"
    CHANGES = "changes"
    """It writes, acts, lets time pass, or draws at random: earlier results prove nothing about later ones."""
    UNKNOWN = "unknown"
    """The name does not say; such a call is taken to leave other results as they are."""


_READS: Final = word_set(
    """
    ask bing browse calculate calculator cat check compare compute convert count describe diff extract fetch
    find get google grep head info inspect list load look lookup ls open parse preview query read resolve
    retrieve scan search show stat status summarize tail test translate validate verify view weather web whois
    wiki wikipedia
    """
)
_CHANGES: Final = word_set(
    """
    act add append apply approve assign back book build buy cancel change clear click close comment commit copy
    create delete deploy disable do drag draw drop edit enable escalate exchange fill flip forward generate go
    goto hover insert install key kill login logout make mark merge modify move navigate next order patch pause
    pay post press previous publish push put random redo register reject remove rename reopen replace reply
    reserve reset restart return roll save schedule scroll select send set shuffle sign sleep start step stop
    store submit swipe tap toggle transfer type undo uninstall update upload wait write
    """
)
_ACTION_KEYS: Final = ("action", "command", "operation", "op", "method", "mode")

_PYTHON_CHANGE = re.compile(
    r"open\([^)\n]*,\s*(?:mode\s*=\s*)?['\"][^'\"]*[wax+]"
    r"|\.(?:write\w*|to_(?:csv|json|parquet|excel|sql|pickle)|save\w*|dump|unlink|mkdir|rmdir|rename|touch|commit)\("
    r"|\bos\.(?:remove|rename|replace|mkdir|makedirs|system|chdir|unlink|popen|environ)"
    r"|\b(?:shutil|subprocess|socket|secrets|uuid|random)\b|requests\.(?:post|put|patch|delete)"
    r"|\btime\.|\.(?:now|today|utcnow)\(|\binput\("
    r"|\b(?:insert\s+into|update\s+\S+\s+set|delete\s+from|(?:create|drop|alter|truncate)\s+\w+)\b",
    re.IGNORECASE,
)
_SHELL_CHANGE = re.compile(
    r"\bsed\s+(?:-\w+\s+)*-\w*i|\bfind\b.*\s-(?:delete|exec|ok)|\bgit\s+(?!status|log|diff|show|blame|grep|ls)\w"
    r"|\bcurl\b.*\s-(?:X|d|-data\S*|F|T|o|O)\b|(?<![-=<>])>{1,2}\s*[\w./~$\"']"
)
_SQL_READ = re.compile(r"\s*(?:select|with|explain|describe|show)\s", re.IGNORECASE)
_HARMLESS_REDIRECTION = re.compile(r"\d?>&\d|[\d&]?>\s*/dev/null")
_SHELL_COMMAND = re.compile(r"(?:^|[;&|\n(`])\s*(?:(?:sudo|time|env)\s+|\w+=\S*\s+)*([^\s;&|()`]+)")
_SHELL_READS: Final = word_set(
    """awk basename column curl cut dirname du echo egrep false file git hexdump jq less man more nl objdump printf pwd
    readlink realpath rg sed sort strings tr tree true type uniq wc whereis which with xxd zcat"""
)
_SHELL_RUNS: Final = word_set("bash cargo go java mypy node npx perl pytest python python3 ruby ruff sh tox")
"""Programs that mostly compute and print: they may write, but seldom what the next look is at."""
_PYTHON_WORDS: Final = word_set("cell code interpreter ipython jupyter notebook python repl")


def effect_of(name: str, arguments: object) -> Effect:
    """Guess the effect of a call.

    Args:
        name: Of the tool.
        arguments: Decoded JSON, or the raw text where it is none.
    """
    action = _action(arguments)
    if action is not None:
        return action
    if tool_kind(name) is not ToolKind.CODE:
        return _effect_of_name(name)
    text = "\n".join(strings(arguments))
    if not _PYTHON_WORDS.isdisjoint(name_words(name)):
        return Effect.CHANGES if _PYTHON_CHANGE.search(text) else Effect.UNKNOWN
    return _effect_of_shell(text)


def _effect_of_shell(text: str) -> Effect:
    """Effect of a shell command or SQL: it only reads if every program in it is known to."""
    if _PYTHON_CHANGE.search(text):
        return Effect.CHANGES
    if _SQL_READ.match(text):
        return Effect.READS
    text = _HARMLESS_REDIRECTION.sub("", text)
    if _SHELL_CHANGE.search(text):
        return Effect.CHANGES
    commands = [command.lower() for command in _SHELL_COMMAND.findall(text)]
    if all(command in _READS or command in _SHELL_READS for command in commands):
        return Effect.READS if commands else Effect.UNKNOWN
    known = _READS | _SHELL_READS | _SHELL_RUNS
    return Effect.UNKNOWN if known.issuperset(commands) else Effect.CHANGES


@lru_cache(maxsize=4096)
def _effect_of_name(name: str) -> Effect:
    return next((e for word in name_words(name) if (e := _effect_of_word(word)) is not None), Effect.UNKNOWN)


def _effect_of_word(word: str) -> Effect | None:
    if word in _READS:
        return Effect.READS
    return Effect.CHANGES if word in _CHANGES else None


def _action(arguments: object) -> Effect | None:
    """Effect that an argument such as `{"action": "click"}` names; None where there is none."""
    if not isinstance(arguments, Mapping):
        return None
    for key in _ACTION_KEYS:
        value = arguments.get(key)
        if isinstance(value, str) and len(value) < 40:
            words = name_words(value)
            if len(words) in (1, 2) and (effect := _effect_of_word(words[0])) is not None:
                return effect
    return None

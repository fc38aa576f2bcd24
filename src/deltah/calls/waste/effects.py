"""Does a tool call change the world, only look at it, or is that unknown? A guess from its name and arguments.

Logs do not say which tools write. The first word of the tool's name (or of an `action`-like argument) that is a known
verb decides. Tools that run code are judged by the code: Python changes something if it writes, sleeps or draws at
random, a shell command if any program in it is not known to only read or compute. The guess errs towards CHANGES: a
call taken for a change hides waste, a change taken for a look would invent it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Final

from deltah.calls.waste.forms import ToolKind, name_words, strings, tool_kind, word_set


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

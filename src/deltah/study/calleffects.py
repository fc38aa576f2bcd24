"""Does a tool call change the world, only look at it, or is that unknown? A guess from its name and arguments.

Logs do not say which tools write. The first word of the tool's name (or of an `action`-like argument) that is a known
verb decides; tools that run code are judged by the code. The guess errs towards CHANGES: a call taken for a change
hides waste, a change taken for a look would invent it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Final

from deltah.study.callforms import ToolKind, name_words, strings, tool_kind, word_set


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
    r"(?:^|[;&|(`]\s*|\b(?:sudo|xargs|time|env)\s+)(?:rm|mv|cp|mkdir|rmdir|touch|chmod|chown|ln|tee|dd|truncate|kill|"
    r"pkill|sleep|wait|pip3?|uv|apt(?:-get)?|npm|yarn|pnpm|make|cmake|docker|kubectl|systemctl|patch|export|source|cd|"
    r"git\s+(?!status|log|diff|show|blame|grep|ls)\w+)\b"
    r"|\bsed\s+(?:-\w+\s+)*-\w*i|\bcurl\b.*\s-(?:X|d|-data|F)\b|(?<![-=<>\d&])>{1,2}\s*(?!&|/dev/null)[\w./~$\"']",
    re.MULTILINE,
)


def effect_of(name: str, arguments: object) -> Effect:
    """Guess the effect of a call.

    Args:
        name: Of the tool.
        arguments: Decoded JSON, or the raw text where it is none.
    """
    action = _action(arguments)
    if action is not None:
        return action
    kind = tool_kind(name)
    if kind is ToolKind.CODE:
        text = "\n".join(strings(arguments))
        # In Python `a > b` is no redirection.
        patterns = (_PYTHON_CHANGE,) if "python" in name.lower() else (_PYTHON_CHANGE, _SHELL_CHANGE)
        return Effect.CHANGES if any(pattern.search(text) for pattern in patterns) else Effect.UNKNOWN
    return _effect_of_name(name)


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

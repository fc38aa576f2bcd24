"""Whether a tool's result says that the call failed: one rule for tools, trainers and logs.

The rule is precise rather than greedy. A result fails by its *form*: fields of an object (`isError`, `error`,
`success`, a status), a status line, an exit code or a traceback at its beginning or end, the title of an HTML page, or
a short message that begins as errors do. A text that speaks of errors does not fail, and where a result states that all
went well (`"isError": false`, exit code 0, HTTP 200), that counts. docs/waste.md lists the forms.
"""

from __future__ import annotations

import ast
import errno
import json
import os
import re
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final

MAX_MESSAGE_CHARS: Final = 600
"""Only results up to this length are read as a message; longer ones fail by their form alone."""
MAX_HEAD_CHARS: Final = 2000
"""Of the beginning and the end of a result are looked at."""
_MAX_OBJECT_CHARS: Final = 1_000_000
_MAX_DEPTH: Final = 3
_OUTPUT: Final = "output: "

_HTTP: Final = frozenset(status.phrase.casefold() for status in HTTPStatus if status >= 400)
_UNCLEAR: Final = frozenset(("not found", "gone", "conflict", "locked"))
"""Phrases of HTTP that may as well be an answer, where no number stands beside them."""


def _either(words: set[str] | frozenset[str]) -> str:
    """Pattern of any of some texts, the longest first."""
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True)).replace(r"\ ", r"\s")


_PHRASE: Final = _either(_HTTP)
_SYSTEM: Final = _either({os.strerror(number) for number in errno.errorcode})
_SYSTEM_NAME: Final = _either({*errno.errorcode.values(), "ENOTFOUND", "EAI_AGAIN"})

_FLAGS: Final = ("iserror", "is_error", "haserror", "has_error")
_SUCCESS: Final = ("success", "succeeded", "successful", "ok")
_STATUS: Final = ("status", "statuscode", "status_code", "http_status", "httpstatus", "httpstatuscode")
_EXIT: Final = ("exit_code", "exitcode", "returncode", "return_code", "exit_status", "exitstatus")
_ERROR: Final = ("error", "errormessage", "error_message", "exception", "traceback")
_REASONS: Final = frozenset(
    ("message", "msg", "error", "errors", "reason", "detail", "details", "description", "title")
)
_ENVELOPE: Final = _REASONS.union(
    (*_STATUS, *_SUCCESS, *_ERROR, "code", "data", "result", "type", "object", "hint", "request_id", "timestamp")
)
"""Fields of an object that says nothing but how the call went."""
_WRAPPERS: Final = frozenset(("result", "output", "content", "text", "response", "message", "detail", "body", "value"))
_BESIDE: Final = frozenset(("type", "role", "meta", "_meta", "structuredcontent", "tool", "name", "id"))
"""Fields beside a wrapper that say nothing of the result."""
_NO_ERROR: Final = frozenset(("", "none", "null", "false", "no", "no error", "ok", "0"))
_FIELD: Final = re.compile(
    r"""["'](?:(?:is|has)?_?error\w*|success\w*|succeeded|ok|(?:http_?)?status(?:_?code)?|code|(?:exit|return)_?(?:code|status)"""
    rf"""|exception|traceback|object|type|{"|".join(sorted(_WRAPPERS))})["']\s*:""",
    re.IGNORECASE,
)
"""Fields that may tell; an object without any is not parsed."""

_TRACEBACK: Final = "Traceback (most recent call last)"
_EXCEPTION: Final = r"(?-i:(?:[A-Za-z_]\w*\.){0,9}[A-Z]\w*(?:Error|Exception|Interrupt|SystemExit))"


def _beginning(*forms: str) -> re.Pattern[str]:
    """Pattern of a text that begins in one of some ways, after marks such as those of Markdown."""
    return re.compile(rf"[\s\W_]{{0,20}}(?:{'|'.join(forms)})", re.IGNORECASE)


_OPENING: Final = _beginning(
    r"(?:(?:tool|api|server|network|system|runtime|fatal|syntax|validation|execution|http|client|request|database|"
    r"internal|unexpected|unknown|command|mcp|function|call|i/o|status:) )*error\b"
    r"(?! (?:handl|correct|track|budget|log|boundar|detect|analy)\w*)"
    r"(?! (?:codes|messages|types|rates?|bars?|terms?|margins?)\b)"
    r"(?:[\])]|\s*\Z|[^\S\n]*\n|\s*[-–—!]|[^\n:]{0,80}:| \(?\d| (?:occurred|while|executing|calling|running)\b)",
    r"(?:sorry, )?(?:an?|the|some) (?:[a-z]+ ){0,2}(?:error|exception) (?:has )?occurred"
    r"(?:\s*\Z|\s?[.:!,(]| (?:while|when|during|processing|executing|trying)\b)",
    rf"(?:uncaught |unhandled )?{_EXCEPTION}(?::\s|\s*\Z|[^\S\n]*\n)",
    r"(?:uncaught|unhandled) (?:exception|promise rejection)\b|exception\s*:",
    r"(?-i:panic: )|thread '[^'\n]*' (?:\(\d+\) )?panicked |fatal: |segmentation fault\b",
    r"npm err! |ERR |(?:net::)?ERR_[A-Z]",
    r"(?:Errno|WinError) -?\d+\]|(?:\w+\.){1,9}(?:errors|exceptions)\.\w+: |<?(?-i:tool_use_error|error)>",
)
"""How a failure of any length begins. The words after "error" that are left out name a subject: error handling."""
_LAST_EXCEPTION: Final = re.compile(rf"\n{_EXCEPTION}(?::[^\n]*)?\s*\Z")
_MESSAGE: Final = _beginning(
    r"(?:[a-z][\w'./-]* ){1,4}fail(?:ed|ure)[.!]?\s*\Z|failed to \w",
    r"(?:[a-z][\w'./-]* ){0,4}fail(?:ed|ure)(?:\s?:|\s*- | with (?:status|code|error|exit|exception|message|http)\b)",
    r"(?:[a-z][\w'-]* ){0,6}timed ?out\b",
    r"(?:[\w'-]+ ){0,3}timeout(?:\s*\Z|\s*[:.!(]| (?:of|after|exceeded|expired|reached|error)\b)",
    r"(?:[\w'-]+ ){0,4}(?:rate[ -]limit\w*|quota)\b[^\n]{0,30}\b(?:exceeded|reached|hit|error)\b|rate[ -]limited\b",
    r"(?:access|permission) (?:is |was )?denied\b|(?:authentication|authorization|login) (?:failed|required)\b",
    r"connection (?:to \S+ )?(?:was )?(?:refused|reset|failed|error|aborted|closed|lost)\b",
    r"(?:could not|couldn't|cannot|can not|can't|unable to) (?:connect|open|read|write|access|resolve|reach|load|parse|"
    r"fetch|execute|process|complete|establish|authenticate|perform|retrieve|call|decode|import|be \w+ed)\b",
    r"something went wrong\b|(?:the )?(?:operation|request) (?:was )?(?:cancell?ed|aborted)\b",
    r"(?:the )?(?:service|server) (?:is )?(?:temporarily |currently )?(?:unavailable|overloaded|down)\b",
    r"(?:invalid|missing|unknown|unsupported|malformed|unrecogni[sz]ed|no such) (?:or \w+ )?(?:required |input )?"
    r"(?:arguments?|parameters?|inputs?|tool|function|method|request|json|api[ -]?key|token|field|command|option|"
    r"credentials|url|schema)\b",
    r"(?:the )?(?:tool|function|method) \S+ (?:(?:was|is) )?(?:not found|does not exist|not available)\b",
    r"(?:[\w./-]+: ){2,3}not found\s*\Z|(?:[\w./-]+: ){0,3}command not found\b",
    rf"(?:[\w.]+:? ){{0,3}}(?-i:{_SYSTEM_NAME})\b",
    r"(?:not authorized|not authenticated|unauthorized|forbidden)(?:\s*\Z|\s?[:.,!-])",
)
"""How a short message of failure begins."""
_STATUS_LINE: Final = _beginning(
    r"HTTP/[\d.]+ (?P<line>\d{3})\b",
    r"(?P<prefix>(?:HTTP|status|response|server|api)[\s:=-]*(?:(?:error|status|code|response|returned)[\s:=-]*)*)?"
    rf"(?P<code>\d{{3}})\b(?:[\s:,(-]*(?:(?:client|server) error:\s*)?(?P<phrase>{_PHRASE})\b"
    r"(?=\s*(?:\Z|\n|[:(!.,)<-]|for url))|(?P<end>[^\S\n]*(?:[.:!(-]|\Z|\n)))",
    r"[^\n:]{0,80}\b(?:failed|error|returned|responded|replied|response|got|received|unexpected|bad|answered)\b[^\n\d]{0,40}"
    r"\b(?:status|code|http)\b[^\n\d]{0,12}(?P<said>\d{3})\b(?! (?!from|for|by|after|while)\w)",
)
_EXIT_LINE: Final = re.compile(
    r"[\s\W_]{0,20}(?:[^:\n]{0,80}\b)?(?:(?:exit(?:ed|s)?|finished|terminated|completed)(?![a-z])[^:\n\d-]{0,24}?"
    r"(?:code|status)|return[\s_]?code)[\"\s:=>(]{0,4}(?P<code>-?\d+)\b(?=\s*(?:\Z|[\]).,;:<}]|\n))",
    re.IGNORECASE,
)
_MARKUP: Final = re.compile(r"<(?:!doctype html|html|\?xml|head|error|center|h1|title)\b", re.IGNORECASE)
_MARKUP_ERROR: Final = re.compile(
    r"<(?:title|h1)\b[^>]*>\s*(?:[^<\n]{0,30}[|–-]\s)?(?:(?:HTTP|status|error)\s*){0,2}[45]\d\d\b[\s:!(–—|.-]*"
    rf"(?:{_PHRASE}|error\b|<)|<title>\s*(?:{_either(_HTTP - _UNCLEAR)})\b|<Error>\s*<(?:Code|Message)>",
    re.IGNORECASE,
)
_SYSTEM_LINE: Final = re.compile(
    rf"(?:[^\n]{{0,200}}:\s)?(?:{_SYSTEM})(?:,[^\n]{{0,200}}|:\s[^\n]{{0,200}}|\.?)\s*", re.IGNORECASE
)
_TRANSIENT: Final = re.compile(
    r"\b(?:408|425|429|5\d\d)\b|timed?[\s_-]?out|deadline exceeded|rate[\s_-]?limit|too many requests|quota|temporar|"
    r"throttl|unavailable|overloaded|try again|connection|network|\bbusy\b|"
    r"\bE(?:CONN\w+|TIMEDOUT|AI_AGAIN|PIPE|BUSY|AGAIN)\b",
    re.IGNORECASE,
)


def is_error(text: str) -> bool:
    """Whether a tool's result reports a failure of the call, by its form; see the module."""
    return not text.startswith(_OUTPUT) and _failed(text, 0) is True


def is_transient(text: str) -> bool:
    """Whether the beginning of a failure says that another try may succeed: a timeout, a limit, a server's fault."""
    return _TRANSIENT.search(text, 0, MAX_MESSAGE_CHARS) is not None


def error_text(reason: str) -> str:
    """Result of a failed call of a tool that deltah ships."""
    return f"error: {reason}"


def success_text(text: str) -> str:
    """Result of a successful call; one that reads like a failure gets the word "output: " before it."""
    return f"{_OUTPUT}{text}" if is_error(text) else text


def _failed(text: str, depth: int) -> bool | None:
    """Whether a result fails or states that it does not; None where nothing tells."""
    head, tail = text[:MAX_HEAD_CHARS].lstrip(), text[-MAX_HEAD_CHARS:]
    if head.startswith(("{", "[")) and (found := _decoded(text)) is not None:
        return _object_failed(found, depth)
    if (stated := _exit_code(head, tail)) is not None:
        return stated != 0
    if head.startswith(_TRACEBACK) or (f"\n{_TRACEBACK}" in text and _LAST_EXCEPTION.search(tail)):
        return True
    if head.startswith("<") and _MARKUP.match(head) and _MARKUP_ERROR.search(head):
        return True
    return True if _OPENING.match(head) else _message_failed(head, short=len(text) <= MAX_MESSAGE_CHARS)


def _message_failed(text: str, *, short: bool) -> bool | None:
    if (found := _STATUS_LINE.match(text)) and (short or found["line"]):
        code = int(found["line"] or found["said"] or found["code"])
        if found["code"] is None or found["phrase"] or (found["prefix"] and found["end"] is not None):
            return 400 <= code < 600
    if not short:
        return None
    if _MESSAGE.match(text) or text.strip().rstrip(".!").casefold() in _HTTP - _UNCLEAR:
        return True
    lines = text.strip().splitlines()
    return True if 0 < len(lines) <= 5 and all(map(_SYSTEM_LINE.fullmatch, lines)) else None


def _exit_code(head: str, tail: str) -> int | None:
    """Exit code that the first or the last line of a text states."""
    for line in (head[:200].partition("\n")[0], tail.rstrip()[-200:].rpartition("\n")[2]):
        if ("code" in line or "status" in line or "CODE" in line) and (found := _EXIT_LINE.match(line)) is not None:
            return int(found["code"])
    return None


def _decoded(text: str) -> Any:
    """Object or list of a text in JSON, or as Python writes one; None for anything else or without a telling field."""
    if len(text) > _MAX_OBJECT_CHARS or not _FIELD.search(text):
        return None
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    if "'" in text[:3] and len(text) <= 20_000:  # TRL writes {'error': ...}
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return ast.literal_eval(text.strip())
    return None


def _object_failed(value: Any, depth: int) -> bool | None:
    if isinstance(value, str) and depth:
        return _failed(value, depth)
    if isinstance(value, list) and value and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in value):
        return _failed("".join(part["text"] for part in value), depth + 1)
    if not isinstance(value, dict):
        return None
    fields = {str(key).casefold(): item for key, item in value.items()}
    for judge in (_stated, _error_field, _status_field):
        if (found := judge(fields)) is not None:
            return found
    wrapped = [name for name in fields if name in _WRAPPERS]
    if len(wrapped) == 1 and depth < _MAX_DEPTH and fields.keys() - _BESIDE == {wrapped[0]}:
        inner = fields[wrapped[0]]
        if isinstance(inner, str) and inner.strip(" .").casefold() in _HTTP:
            return True
        return _object_failed(inner, depth + 1)
    return None


def _stated(fields: dict[str, Any]) -> bool | None:
    """What a truth value or an exit code says."""
    for names, failed in ((_FLAGS, True), (_SUCCESS, False)):
        for value in map(fields.get, names):
            if isinstance(value, bool) or value in ("true", "false") or (failed and value in (0, 1)):
                return (value in (1, "true")) is failed
    codes = (value for value in map(fields.get, _EXIT) if isinstance(value, int) and not isinstance(value, bool))
    return next((code != 0 for code in codes), None)


def _error_field(fields: dict[str, Any]) -> bool | None:
    """Whether a field holds an error; a number is none: it may be a measured one."""
    for value in map(fields.get, _ERROR):
        if isinstance(value, str) and value.strip().casefold() not in _NO_ERROR:
            return True
        items: Any = value.values() if isinstance(value, dict) else value
        if value is True or (isinstance(value, dict | list) and any(items)):
            return True
    if "error" in (fields.get("object"), fields.get("type")):
        return True
    return True if fields.get("errors") and "data" in fields and not fields["data"] else None


def _status_field(fields: dict[str, Any]) -> bool | None:
    coded = fields.get("code") if fields.keys() & _REASONS else None
    for value in (*map(fields.get, _STATUS), coded):
        if isinstance(value, int) and not isinstance(value, bool) and 100 <= value < 600:
            return value >= 400
        if isinstance(value, str):
            word = value.strip().casefold()
            alone = fields.keys() <= _ENVELOPE
            if re.match(r"[45]\d\d\b", word) or (word in ("error", "errored") and (alone or fields.keys() & _REASONS)):
                return True
            if word in ("failed", "failure", "fail") and alone:  # else it is the status of what was asked for
                return True
    return None

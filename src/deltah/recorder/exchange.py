"""One request with its answer: what is asked beside what its client asked, what the client sees, the line of the log.

Requests and answers are cut and put together as bytes: a value that is not ours leaves as it came. The conversation of
a request is the one that its client names, else the one whose reply its history holds.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec

Fields = dict[str, bytes]  # top-level names of a JSON object and their values, undecoded
_FINAL: Final = (b'"response.completed"', b'"response.incomplete"', b'"response.failed"')
_SECRET_FIELDS: Final = ("api_key", "extra_headers", "headers", "authorization")
_SECRET_NAME: Final = re.compile(rb"key|token|secret|auth|cookie|passw|^sig", re.IGNORECASE)  # of headers, parameters
_LAST_WORDS: Final = re.compile(rb"[^\s;]+(?=\s*(?:;|$))")
_NAMES: Final = ("session_id", "conversation_id", "thread_id")  # in metadata; x-session-id and so on in headers
_MAX_KEPT: Final = 20_000
_UNIQUE: Final = 16  # characters of an id drawn at random, which says enough where the beginning was rewritten
_Key = tuple[object, ...]
# Halves of surrogate pairs, which msgspec does not decode.
_HALF: Final = re.compile(rb"\\u[dD][89abAB]\w\w(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]\w\w)\\u[dD][c-fC-F]\w\w")


class Piece(msgspec.Struct):
    """What is looked at in a message, in an answer, one of its chunks or events, or in a part of these."""

    logprobs: msgspec.Raw = msgspec.Raw()
    choices: list[Piece] | None = None
    message: Piece | str | None = None
    delta: Piece | str | None = None
    response: Piece | None = None
    item: Piece | None = None
    part: Piece | None = None
    output: list[Piece] | str | None = None
    content: list[Piece] | str | None = None
    tool_calls: list[Piece] | None = None
    finish_reason: Any = None
    role: Any = None
    type: Any = None
    text: Any = None
    id: Any = None
    call_id: Any = None

    def said(self) -> tuple[str, list[str]]:
        """Text of a message, delta or item, and the ids of its calls."""
        parts = self.content if isinstance(self.content, list) else [self]
        texts = [self.content, *(part.text for part in parts)]
        ids = [self.call_id, *(call.id for call in self.tool_calls or [])]
        return "".join(t for t in texts if isinstance(t, str)), [id for id in ids if isinstance(id, str) and id]

    def blocks(self) -> Iterator[bytes]:
        """Every block of log-probabilities that holds any."""
        if b'"' in (block := bytes(self.logprobs)):
            yield block
        single = [self.message, self.delta, self.response, self.item, self.part]
        for children in (single, self.choices, self.output, self.content):
            for child in children if isinstance(children, list) else ():
                if isinstance(child, Piece):
                    yield from child.blocks()


_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def fields_of(body: bytes) -> Fields | None:
    """The fields of a JSON object; None for anything else."""
    try:
        return {name: bytes(value) for name, value in _FIELDS.decode(body).items()}
    except (ValueError, RecursionError):
        with suppress(ValueError, RecursionError, AttributeError):  # takes halves of surrogate pairs
            return {name: json.dumps(value).encode() for name, value in json.loads(body).items()}
    return None


def json_object(fields: Mapping[str, bytes]) -> bytes:
    """The JSON object of these fields."""
    return b"{" + b",".join(json.dumps(name).encode() + b":" + value for name, value in fields.items()) + b"}"


def legible(data: bytes) -> bytes:
    """The same number of bytes without halves of surrogate pairs."""
    return _HALF.sub(rb"\\ufffd", data) if b"\\" in data and b"\\ud" in data.lower() else data


def with_logprobs(path: str, fields: Fields, k: int) -> Fields:
    """The fields of the same request for the `k` best log-probabilities of each token."""
    number = str(k).encode()
    if path.endswith("/responses"):
        given = json.loads(fields.get("include", b"null")) or []
        if not isinstance(given, list):  # the server says what is wrong with it
            return fields
        included = [*given, "message.output_text.logprobs"]
        return fields | {"top_logprobs": number, "include": json.dumps(included).encode()}
    is_chat = path.endswith("/chat/completions")
    return fields | ({"logprobs": b"true", "top_logprobs": number} if is_chat else {"logprobs": number})


@dataclass(slots=True)
class Exchange:
    """What was asked and answered; it gathers a stream as it passes."""

    path: str
    session: str
    sent: Fields  # what the server got; empty where a request only passes and is not recorded
    secrets: list[bytes] = field(default_factory=list)  # what the log must not hold
    facts: dict[str, object] = field(default_factory=dict)  # what every line states, such as `logprobs_mode`
    kind: str = ""  # what requests that a server treats alike have in common
    hides: bool = False  # whether the client does not see log-probabilities
    started_at: float = field(default_factory=time.time)
    _began: float = field(default_factory=time.monotonic)
    duration_s: float | None = None
    status: int | None = None
    ended: str | None = None  # why the answer is not whole
    call_ids: list[str] = field(default_factory=list)
    text: str = ""
    response_id: str | None = None
    n_blocks: int = 0  # of log-probabilities
    is_over: bool = False  # whether the client knows that nothing more comes
    _answers: list[bytes] = field(default_factory=list)
    _streamed: bool = False
    _rest: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of request and answer."""
        return sum(map(len, (*self.sent.values(), *self._answers)))

    def take_whole(self, body: bytes) -> bytes:
        """Take the body of an answer; returns what the client sees of it."""
        self._answers.append(body)
        return self._seen(body)

    def take_part(self, part: bytes) -> bytes:
        """Take what arrived of a stream; returns what of it can be passed on, lines that are whole."""
        self._streamed = True
        *lines, self._rest = (self._rest + part).split(b"\n")
        return b"".join([self._event(line) + b"\n" for line in lines])

    def take_end(self) -> bytes:
        """What is left at the end of a stream."""
        return self._event(self._rest)

    def _event(self, line: bytes) -> bytes:
        """Take a line of a stream; those that carry data begin with that word."""
        data = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or data in (b"", b"[DONE]"):
            self.is_over |= data == b"[DONE]"
            return line
        self._answers.append(data)
        return self._seen(line)

    def _seen(self, data: bytes) -> bytes:
        """What the client sees of a body or line; notes by what the next request knows the reply."""
        looked = legible(data)
        try:
            piece = msgspec.json.decode(looked.removeprefix(b"data:"), type=Piece)
        except (ValueError, RecursionError):
            return data
        found = list(piece.blocks())
        self.n_blocks += len(found)
        whole, choice = piece.response or piece, piece.choices[0] if piece.choices else Piece()
        items = whole.output if isinstance(whole.output, list) else []
        self.response_id = self.response_id or (whole.id if isinstance(whole.id, str) else None)
        self.is_over |= choice.finish_reason is not None or bool(items and piece.response)
        for part in (choice, choice.message, choice.delta, *items):
            if isinstance(part, Piece):
                text, call_ids = part.said()
                self.text += text
                self.call_ids += call_ids
        for block in sorted(found, key=len, reverse=True) if self.hides else ():
            empty = b"[]" if block.startswith(b"[") else b"null"
            while (at := looked.find(block)) >= 0:
                data, looked = (one[:at] + empty + one[at + len(block) :] for one in (data, looked))
        return data

    def finish(self, ended: str | None = None) -> None:
        """State that nothing more comes, unless it was stated; `ended` says why, where the answer is not whole."""
        if self.duration_s is None:
            self.duration_s, self.ended = time.monotonic() - self._began, ended

    def line(self) -> bytes:
        """The line of the log."""
        facts = {
            "session_id": self.session,
            "started_at": round(self.started_at, 6),
            "duration_s": round(self.duration_s or 0.0, 6),
            "endpoint": self.path,
            "http_status": self.status,
            **({"ended": self.ended} if self.ended else {}),
            **self.facts,
        }
        request = {name: value for name, value in self.sent.items() if name not in _SECRET_FIELDS}
        with suppress(AttributeError, TypeError, KeyError):  # no tools, or what the server refuses as such
            given = json.loads(request["tools"])
            tools = [{name: value for name, value in tool.items() if name not in _SECRET_FIELDS} for tool in given]
            request["tools"] = json.dumps(tools).encode()
        body = json_object({"request": json_object(request), "response": self._response()})
        for secret in filter(body.__contains__, self.secrets):
            body = re.sub(re.escape(secret) + rb'(?!"\s*:)', b"[removed]", body)
        body = body.replace(b"\n", b" ").replace(b"\r", b" ")  # in texts they are escaped
        return body[:-1] + b"," + json.dumps(facts).encode()[1:] + b"\n"

    def _response(self) -> bytes:
        if self._streamed and self._answers:
            last = fields_of(self._answers[-1]) or {}
            if last.get("type") in _FINAL:
                return last["response"]
            return b"[" + b",".join(chunk for chunk in self._answers if fields_of(chunk) is not None) + b"]"
        body = b"".join(self._answers)
        if fields_of(body) is not None:
            return body
        told = body[:2000].decode("utf-8", "replace") or self.ended or "the answer is empty"
        return json.dumps({"error": {"message": told, "type": "recorder"}}).encode()


def secrets_in(headers: Sequence[tuple[bytes, bytes]], query: bytes) -> list[bytes]:
    """What must not stand in the log, of the headers and the query of a request; short words are no keys."""
    named = [*headers, *(pair.partition(b"=")[::2] for pair in query.split(b"&"))]
    words = [w for name, value in named if _SECRET_NAME.search(name) for w in _LAST_WORDS.findall(value)]
    found = {form for word in words for form in (word, word.partition(b"=")[2], unquote_to_bytes(word))}
    return sorted((secret for secret in found if len(secret) >= 8), key=len, reverse=True)


class Sessions:
    """Finds the conversation of a request; the salt tells one start of the recorder from another."""

    def __init__(self, salt: str, header: str | None = None) -> None:
        self._salt = salt
        known = [f"x-{name.replace('_', '-')}" for name in _NAMES]
        self._headers = [name.lower().encode() for name in ([header] if header else []) + known]
        self._n_begun = 0
        # Conversations by what their last reply is recognised by, the latest last.
        self._known: dict[_Key, dict[str, None]] = {}

    def find(self, fields: Fields, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """The name of a request's conversation, a new one where it continues none."""
        stated, metadata = dict(headers), json.loads(fields.get("metadata", b"null"))
        names = [stated.get(name, b"").decode("latin-1") for name in self._headers]
        names += [str(metadata.get(name) or "") for name in _NAMES] if isinstance(metadata, dict) else []
        if any(names):
            return next(filter(None, names))
        messages: list[Piece] = []
        with suppress(ValueError, RecursionError):
            given = legible(fields.get("messages") or fields.get("input", b"[]"))
            messages = msgspec.json.decode(given, type=list[Piece])
        turns = [i for i, m in enumerate(messages) if m.role == "assistant" or m.type == "function_call"]
        asked = [m.said()[0] for m in messages[: turns[0] if turns else None] if m.role == "user"]
        told = "\0".join([self._salt, *(asked or [str(fields.get(n)) for n in ("messages", "prompt", "input")])])
        beginning = hashlib.blake2b(told.encode("utf-8", "replace"), digest_size=6).hexdigest()
        keys: list[_Key] = [("response", fields.get("previous_response_id"))]
        keys += [key for i in reversed(turns) for key in _keys(beginning, *messages[i].said())]
        for key in [*keys, (beginning,)] if turns else keys:
            if known := self._known.get(key):
                # Of equal replies each is continued once, and the last that is left as often as it comes.
                return known.popitem()[0] if len(known) > 1 else next(iter(known))
        self._n_begun += 1
        begun = f"{beginning}-{self._n_begun}" if self._known.pop((beginning,), None) else beginning
        self._known[(beginning,)] = {begun: None}
        return begun

    def remember(self, session: str, call_ids: Sequence[str], text: str, response_id: str | None = None) -> None:
        """Take a reply, by whose calls, text or own id the next request of its conversation is recognised."""
        own: list[_Key] = [("response", json.dumps(response_id).encode())] if response_id else []
        for key in own + _keys(session.partition("-")[0], text, call_ids):
            known = self._known[key] = self._known.pop(key, {})
            known[session] = None
            if len(known) > _MAX_KEPT:
                del known[next(iter(known))]
        while len(self._known) > _MAX_KEPT:
            del self._known[next(iter(self._known))]


def _keys(beginning: str, text: str, call_ids: Sequence[str]) -> list[_Key]:
    """What identifies a reply, the surest first; ids alone may recur, a text may be trimmed."""
    said = text.rpartition("</think>")[2].strip()
    ids = tuple(sorted(set(call_ids)))  # some servers repeat the id in each chunk
    several = ((ids, said and hash(said)), (ids,), (said and hash(said),))
    keys: list[_Key] = [(beginning, *parts) for parts in several if all(parts)]
    return keys + ([ids] if ids and min(map(len, ids)) >= _UNIQUE else [])

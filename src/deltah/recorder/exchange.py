"""One request with its answer, as it becomes a line of the log."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from deltah.recorder.asking import Endpoint, Fields, Piece, blocks, fields_of, json_object, legible, piece_of, without
from deltah.recorder.sessions import Conversation

_FINAL: Final = ("response.completed", "response.incomplete", "response.failed")
_SECRET_NAME: Final = re.compile(rb"key|token|secret|auth|cookie|passw|^sig", re.IGNORECASE)
"""Headers and parameters whose values may be keys."""
_SECRET_FIELDS: Final = ("api_key", "extra_headers", "headers", "authorization")
REMOVED: Final = b"[removed]"
_LEAST_SECRET: Final = 8
"""Shorter values are no keys, and stand in ordinary text."""
_MAX_ERROR: Final = 2000


Headers = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class Exchange:
    """What was asked and answered; it gathers a stream as it passes."""

    endpoint: Endpoint
    path: str
    conversation: Conversation
    sent: Fields
    """Fields of the request as the server got them."""
    hides: bool = False
    """Whether the client does not see log-probabilities."""
    secrets: list[bytes] = field(default_factory=list)
    """What the log must not hold."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What every line states, such as `logprobs_mode`."""
    started_at: float = field(default_factory=time.time)
    began: float = field(default_factory=time.perf_counter)
    duration_s: float | None = None
    status: int | None = None
    ended: str | None = None
    """Why the answer is not whole."""
    call_ids: list[str] = field(default_factory=list)
    response_id: str | None = None
    n_blocks: int = 0
    """Blocks of log-probabilities seen."""
    is_over: bool = False
    """Whether the client knows that nothing more comes."""
    _answers: list[bytes] = field(default_factory=list)
    _texts: list[str] = field(default_factory=list)
    _streamed: bool = False
    _rest: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of request and answer."""
        return sum(map(len, (*self.sent.values(), *self._answers)))

    @property
    def text(self) -> str:
        """What the reply says."""
        return "".join(self._texts)

    @property
    def says_something(self) -> bool:
        """Whether the reply has text or calls, which log-probabilities could describe."""
        return bool(self.call_ids or any(self._texts))

    def take_whole(self, body: bytes) -> bytes:
        """Take the body of an answer; returns what the client sees of it."""
        self._answers.append(body)
        self.is_over = True
        return self._seen(body, body)

    def take_part(self, part: bytes) -> bytes:
        """Take what arrived of a stream; returns what of it can be passed on, lines that are whole."""
        self._streamed = True
        *lines, self._rest = (self._rest + part).split(b"\n")
        return b"".join(self._event(line) + b"\n" for line in lines)

    def take_end(self) -> bytes:
        """What is left at the end of a stream."""
        rest, self._rest = self._rest, b""
        return self._event(rest)

    def _event(self, line: bytes) -> bytes:
        """Take a line of a stream; those that carry data begin with that word."""
        data = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or data in (b"", b"[DONE]"):
            self.is_over |= data == b"[DONE]"
            return line
        self._answers.append(data)
        return self._seen(line, data)

    def _seen(self, given: bytes, data: bytes) -> bytes:
        """What the client sees of bytes that hold this JSON."""
        piece, looked = piece_of(data), given
        if piece is None:
            piece, looked = piece_of(legible(data)), legible(given)
        if piece is None:
            return given
        found = list(blocks(piece))
        self.n_blocks += len(found)
        self._note(piece)
        return without(given, found, looked) if self.hides else given

    def _note(self, piece: Piece) -> None:
        """Remember what the reply is recognised by in the next request."""
        whole = piece.response or piece
        self.response_id = self.response_id or (whole.id if isinstance(whole.id, str) else None)
        choice = piece.choices[0] if piece.choices else Piece()
        items = whole.output if isinstance(whole.output, list) else []
        self.is_over |= choice.finish_reason is not None or bool(items and piece.response)
        for said in (choice, choice.message, choice.delta, *items):
            if isinstance(said, Piece):
                parts = said.content if isinstance(said.content, list) else [said]
                texts = [said.content, *(part.text for part in parts)]
                self._texts += [text for text in texts if isinstance(text, str)]
                ids = [said.call_id, *(call.id for call in said.tool_calls or [])]
                self.call_ids += [id for id in ids if isinstance(id, str) and id]

    def finish(self, ended: str | None = None) -> None:
        """State that nothing more comes; `ended` says why, where the answer is not whole."""
        if self.duration_s is None:
            self.duration_s = time.perf_counter() - self.began
        self.ended = None if self.is_over else ended

    def line(self) -> bytes:
        """The line of the log."""
        facts = {
            "session_id": self.conversation.session,
            "started_at": round(self.started_at, 6),
            "duration_s": round(self.duration_s or 0.0, 6),
            "endpoint": self.path,
            "http_status": self.status,
            **({"ended": self.ended} if self.ended else {}),
            **self.facts,
        }
        request = json_object(_without_secrets(self.sent))
        body = json_object({"request": request, "response": self._response()})
        for secret in filter(body.__contains__, self.secrets):
            body = re.sub(re.escape(secret) + rb'(?!"\s*:)', REMOVED, body)
        # Outside of texts, where they are escaped, line breaks are white space.
        body = body.replace(b"\n", b" ").replace(b"\r", b" ")
        return body[:-1] + b"," + json.dumps(facts).encode()[1:] + b"\n"

    def _response(self) -> bytes:
        if not self._answers:
            return _error(self.ended or "the answer is empty")
        if not self._streamed:
            body = self._answers[0]
            return body if fields_of(body) is not None else _error(body[:_MAX_ERROR].decode("utf-8", "replace"))
        if self.endpoint is Endpoint.RESPONSES:
            last = fields_of(self._answers[-1]) or {}
            if json.loads(last.get("type", b"null")) in _FINAL:
                return last["response"]
        valid = [chunk for chunk in self._answers if fields_of(chunk) is not None]
        return b"[" + b",".join(valid) + b"]"


def secrets_in(headers: Sequence[tuple[bytes, bytes]], query: bytes) -> list[bytes]:
    """What must not stand in the log, of the headers and the query of a request."""
    found: list[bytes] = []
    for name, value in headers:
        if _SECRET_NAME.search(name):
            pairs = value.split(b";") if name.lower() == b"cookie" else [value.split()[-1] if value.split() else b""]
            found += [pair.partition(b"=")[2] if name.lower() == b"cookie" else pair for pair in pairs]
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        found += [value, unquote_to_bytes(value)] if _SECRET_NAME.search(name) else []
    return sorted({word.strip() for word in found if len(word.strip()) >= _LEAST_SECRET}, key=len, reverse=True)


def _without_secrets(fields: Fields) -> Fields:
    """The request without fields that carry keys, those of remote tools included."""
    kept = {name: value for name, value in fields.items() if name not in _SECRET_FIELDS}
    if any(f'"{name}"'.encode() in kept.get("tools", b"") for name in _SECRET_FIELDS):
        tools = json.loads(kept["tools"])
        for tool in tools if isinstance(tools, list) else []:
            for name in _SECRET_FIELDS if isinstance(tool, dict) else ():
                tool.pop(name, None)
        kept["tools"] = json.dumps(tools).encode()
    return kept


def _error(message: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": "recorder"}}).encode()

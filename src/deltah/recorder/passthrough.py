"""The pass-through: an ASGI application between clients and one server.

Requests of the endpoints that are recorded ask for log-probabilities too, where their client does not, and the client
does not see them. Everything else passes as it came.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import httpx

from deltah.recorder.asking import endpoint_of, fields_of
from deltah.recorder.exchange import Exchange, Headers, secrets_in
from deltah.recorder.logfile import LogFile
from deltah.recorder.sessions import Sessions
from deltah.recorder.upstream import FAILURES, Upstream, reason, without_headers

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_HOP: Final = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding "
    b"upgrade expect".split()
)
"""Headers that speak of one connection."""
_CLIENT_LEFT: Final = "the client closed the connection"
_ENDED: Final = "the recorder was ended"
_DOWN: Final = "down"


@dataclass(slots=True)
class Counts:
    """What passed so far."""

    passed: int = 0
    """Requests that are not recorded."""
    measured: int = 0
    """Exchanges with log-probabilities."""
    failed: int = 0
    """Answered with an error."""
    cut: int = 0
    """Broken off by the client, the server or the end of the recorder."""


class Recorder:
    """The ASGI application.

    Args:
        server: The server behind.
        log: Where exchanges go.
        session_header: Header in which clients name their session, beside the known ones.
        facts: What every line of the log states, such as `logprobs_mode`.
    """

    def __init__(
        self, server: Upstream, log: LogFile, *, session_header: str | None = None, facts: dict[str, Any] | None = None
    ) -> None:
        self.counts = Counts()
        self._server, self._log, self._facts = server, log, facts or {}
        self._sessions = Sessions(salt=str(time.time_ns()), header=session_header)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on; when its client leaves, the connection to the server is closed."""
        if scope["type"] != "http" or (body := await _body(receive)) is None:
            return
        work = asyncio.ensure_future(self._pass(scope, body, send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel(_CLIENT_LEFT if gone.done() and not gone.cancelled() else _ENDED)
            gone.cancel()
            with suppress(asyncio.CancelledError):
                await work

    async def _pass(self, scope: Scope, body: bytes, send: Send) -> None:
        answer, exchange = _Answer(send), self._exchange(scope, body)
        url = self._server.at(scope.get("raw_path") or scope["path"].encode(), scope["query_string"])
        headers = without_headers(scope["headers"], _HOP | {b"host"})
        try:
            if exchange is None:
                self.counts.passed += 1
                await _relay(await self._server.send(scope["method"], url, headers, body), answer)
            else:
                await self._record(await self._server.ask(url, headers, body, exchange), answer, exchange)
            self._server.say_again(_DOWN)
        except FAILURES as error:
            said = f"no answer from {self._server}: {reason(error)}"
            self._server.say_once(_DOWN, f"{said}; clients get 502 until it answers")
            if exchange is not None:
                exchange.finish(said)
            if not answer.begun:  # one that has begun is left unfinished, and the connection is closed
                reply = {"error": {"message": f"deltah record: {said}", "type": "upstream_error"}}
                await answer.whole(502, [(b"content-type", b"application/json")], json.dumps(reply).encode())
        except asyncio.CancelledError as cancelled:
            if exchange is not None:
                exchange.finish(str(*cancelled.args[:1]) or _ENDED)
            raise
        finally:
            if exchange is not None:
                self._keep(exchange, answer.status)

    def _exchange(self, scope: Scope, body: bytes) -> Exchange | None:
        """What is recorded of a request; None where it only passes."""
        endpoint = endpoint_of(scope["method"], scope["path"])
        if endpoint is None:
            return None
        if (fields := fields_of(body)) is None:
            self._server.say_once("unread", f"a request to {scope['path']} holds no JSON object; it is not recorded")
            return None
        return Exchange(
            endpoint=endpoint,
            path=scope["path"],
            conversation=self._sessions.find(fields, scope["headers"]),
            sent=fields,
            secrets=secrets_in(scope["headers"], scope["query_string"]),
            facts=self._facts,
        )

    async def _record(self, response: httpx.Response, answer: _Answer, exchange: Exchange) -> None:
        status, headers = response.status_code, without_headers(response.headers.raw, _HOP | {b"content-encoding"})
        try:
            if not _is_stream(response, exchange):
                body = exchange.take_whole(await response.aread())
                self._finish(exchange)
                await answer.whole(status, headers, body)
                return
            await answer.begin(status, without_headers(headers, frozenset({b"content-length"})))
            async for part in response.aiter_bytes():
                seen = exchange.take_part(part)
                if exchange.is_over:  # the client may ask again as soon as it has this
                    self._finish(exchange)
                await answer.part(seen)
            await answer.part(exchange.take_end(), more=False)
            self._finish(exchange)
        finally:
            await response.aclose()

    def _finish(self, exchange: Exchange) -> None:
        if exchange.duration_s is None:
            exchange.finish()
            self._sessions.remember(exchange.conversation, exchange.call_ids, exchange.text, exchange.response_id)

    def _keep(self, exchange: Exchange, status: int | None) -> None:
        """Give a finished exchange to the log."""
        exchange.status = status
        self.counts.measured += exchange.n_blocks > 0
        failed = status is not None and status >= 400
        self.counts.failed += failed
        self.counts.cut += exchange.ended is not None and not failed
        self._server.judge(exchange)
        self._log.offer(exchange)


class _Answer:
    """What a client gets."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None

    @property
    def begun(self) -> bool:
        return self.status is not None

    async def begin(self, status: int, headers: Headers) -> None:
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def part(self, data: bytes, *, more: bool = True) -> None:
        if data or not more:
            await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        length = str(len(body)).encode()
        stated = [(name, length if name.lower() == b"content-length" else value) for name, value in headers]
        await self.begin(status, stated)
        await self.part(body, more=False)


def _is_stream(response: httpx.Response, exchange: Exchange) -> bool:
    kind = response.headers.get("content-type", "")
    return kind.startswith("text/event-stream") or (
        exchange.sent.get("stream") == b"true" and response.is_success and "json" not in kind
    )


async def _relay(response: httpx.Response, answer: _Answer) -> None:
    """Pass on an answer as it comes."""
    try:
        await answer.begin(response.status_code, without_headers(response.headers.raw, _HOP))
        async for part in response.aiter_raw():
            await answer.part(part)
        await answer.part(b"", more=False)
    finally:
        await response.aclose()


async def _body(receive: Receive) -> bytes | None:
    """Body of a request; None if its client leaves before the end."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

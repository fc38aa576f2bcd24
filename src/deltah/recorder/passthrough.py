"""The pass-through: an ASGI application between clients and one server, and what serves it (needs uvicorn).

Requests that are recorded ask for log-probabilities too, where their client does not, and the client does not see them.
A server that refuses them is asked once for as many as it says it gives, else without: remembered for requests alike.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import ExitStack, aclosing, nullcontext, suppress
from typing import Any, Final

import httpx
import uvicorn

from deltah.errors import ConfigError
from deltah.recorder.exchange import Exchange, Sessions, fields_of, json_object, secrets_in, with_logprobs
from deltah.recorder.logfile import LogFile
from deltah.text_format import agreeing, count

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

LOCAL: Final = ("localhost", "127.0.0.1", "::1")  # hosts that no proxy of the environment is asked for
_HOP: Final = (  # headers that speak of one connection
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding "
    b"upgrade expect"
).split()
_NOT_ASKED: Final = (None, b"null", b"false")
_NAMES_LOGPROBS: Final = re.compile(r"logprob|top_n_tokens", re.IGNORECASE)  # TGI's refusal calls them top tokens
_NUMBER: Final = re.compile(r"(?<![\w.-])\d{1,3}(?![\w-])")


class Upstream:
    """A server that is asked on behalf of clients; `ConfigError` if the URL is none of a server."""

    def __init__(self, url: str, top_logprobs: int, say: Callable[[str], None]) -> None:
        self.url = httpx.URL()
        with suppress(httpx.InvalidURL):
            self.url = httpx.URL(url)
        if self.url.scheme not in ("http", "https") or not self.url.host or self.url.query or self.url.fragment:
            raise ConfigError(
                "--upstream: expected the URL of a server without ? and #, such as http://localhost:8000/v1; "
                "give keys to the client, they pass through"
            )
        self._own = self.url.raw_path.rstrip(b"/").removesuffix(b"/v1")
        self._top_logprobs, self._say = top_logprobs, say
        self._allowed: dict[str, int] = {}
        self.said: set[str] = set()
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=10.0),
            # Idle connections are closed before servers do so (uvicorn: after 5 seconds).
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=4.0),
            trust_env=self.url.host not in LOCAL,
        )

    def __str__(self) -> str:
        """The URL without a password."""
        return str(self.url.copy_with(username=None, password=None)).rstrip("/")

    def at(self, path: bytes, query: bytes = b"") -> httpx.URL:
        """Where a request goes; a path of the server's own may stand before the client's or be left out."""
        whole = path if not self._own or path.startswith(self._own + b"/") else self._own + path
        return self.url.copy_with(raw_path=whole + (b"?" + query if query else b""))

    def check(self) -> None:
        """Tell the user if the server does not answer now, in whatever way."""
        try:
            httpx.get(self.at(b"/v1/models"), timeout=3.0, trust_env=self.url.host not in LOCAL)
        except httpx.HTTPError as error:
            self.say_once("does not answer yet", f" ({reason(error)}); clients get 502 until it does")

    async def ask(self, scope: Message, body: bytes, exchange: Exchange) -> httpx.Response:
        """Send a request; with log-probabilities asked for, or fewer or none where the server refuses them."""
        url = self.at(scope.get("raw_path") or scope["path"].encode(), scope["query_string"])
        headers, refusal = without(scope["headers"], b"host", *_HOP), ""
        fields, asked = exchange.sent, 0
        model = fields.get("model", b"?").decode("utf-8", "replace").strip('"')
        how = ["streams"] * (fields.get("stream") == b"true")
        how += ["tools"] * (fields.get("tools", b"null") not in (b"[]", b"null"))
        exchange.kind = f"{exchange.path}, model {model}" + (f", with {' and '.join(how)}" if how else "")
        if fields:
            headers = without(headers, b"content-length", b"content-encoding", b"accept-encoding")
            headers.append((b"accept-encoding", b"identity"))
            itself = b"logprobs" in fields.get("include", b"") or fields.get("top_logprobs") not in (*_NOT_ASKED, b"0")
            if not itself and fields.get("logprobs") in _NOT_ASKED:
                asked = self._allowed.get(exchange.kind, self._top_logprobs)
        k = asked
        while True:
            exchange.hides = k > 0
            exchange.sent = with_logprobs(exchange.path.rstrip("/"), fields, k) if k else fields
            content = json_object(exchange.sent) if k else body
            request = httpx.Request(scope["method"], url, headers=headers, content=content)
            response = await self._client.send(request, stream=True)
            if not k or response.status_code < 400:
                break
            refusal = (await response.aread()).decode("utf-8", "replace")
            if response.status_code not in (400, 422) and not _NAMES_LOGPROBS.search(refusal):
                break
            k = smaller(refusal, k) if k == asked else 0
        if k < asked and response.is_success:
            self._allowed[exchange.kind] = k
            what = f"gives at most {k} log-probabilities" if k else "refuses log-probabilities"
            self.say_once(f"{what} for {exchange.kind}", f": {' '.join(refusal.split())[:200]}")
        return response

    def say_once(self, what: str, more: str = "") -> None:
        """Tell the user something of the server, unless it was told."""
        if what not in self.said:
            self.said.add(what)
            self._say(f"{self} {what}{more}")


class Recorder:
    """The ASGI application; `facts` are what every line of the log states."""

    def __init__(self, server: Upstream, log: LogFile, session_header: str | None = None, **facts: object) -> None:
        # Requests that passed unrecorded; exchanges measured, failed (answered with an error) and cut (broken off).
        self.counts: Counter[str] = Counter()
        self._server, self._log, self._facts = server, log, facts
        self._sessions = Sessions(salt=str(time.time_ns()), header=session_header)

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Send) -> None:
        """Pass one request on; when its client leaves, the connection to the server is closed."""
        message: Message = {"more_body": True}
        body = bytearray()
        while message.get("more_body"):
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
        exchange = self._exchange(scope, bytes(body))
        work = asyncio.ensure_future(self._pass(scope, bytes(body), exchange, send))
        gone = asyncio.ensure_future(receive())
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if gone.done() and not gone.cancelled():
                exchange.finish("the client closed the connection")
            work.cancel()
            gone.cancel()
            with suppress(asyncio.CancelledError):
                await work

    async def _pass(self, scope: Message, body: bytes, exchange: Exchange, send: Send) -> None:
        try:
            async with aclosing(await self._server.ask(scope, body, exchange)) as response:
                await self._answer(response, exchange, send)
            self._server.said.discard("does not answer")
        except (httpx.TransportError, httpx.StreamError, httpx.DecodingError) as error:
            said = f"no answer from {self._server}: {reason(error)}"
            self._server.say_once("does not answer", f" ({reason(error)}); clients get 502 until it does")
            exchange.finish(said)
            if exchange.status is None:  # an answer that has begun is left unfinished, and the connection is closed
                exchange.status = 502
                reply = {"error": {"message": f"deltah record: {said}", "type": "upstream_error"}}
                json_type = [(b"content-type", b"application/json")]
                await send({"type": "http.response.start", "status": 502, "headers": json_type})
                await send({"type": "http.response.body", "body": json.dumps(reply).encode()})
        finally:
            exchange.finish("the recorder was ended")
            self._keep(exchange)

    def _exchange(self, scope: Message, body: bytes) -> Exchange:
        path, fields = scope["path"], None
        is_recorded = scope["method"] == "POST" and path.rstrip("/").endswith(("/completions", "/responses"))
        if is_recorded and not (fields := fields_of(body)):
            self._server.say_once(f"got a request to {path} that holds no JSON object; it is not recorded")
        session = self._sessions.find(fields, scope["headers"]) if fields else ""
        return Exchange(path, session, fields or {}, secrets_in(scope["headers"], scope["query_string"]), self._facts)

    async def _answer(self, response: httpx.Response, exchange: Exchange, send: Send) -> None:
        """Pass an answer on: as it comes, or as a whole where its log-probabilities are to be cut out of a whole."""
        headers, kind = without(response.headers.raw, *_HOP), response.headers.get("content-type", "")
        rest = None
        if exchange.sent:
            streamed = exchange.sent.get("stream") == b"true" and response.is_success and "json" not in kind
            headers = without(headers, b"content-encoding")
            if streamed or kind.startswith("text/event-stream"):
                headers = without(headers, b"content-length")
            else:
                rest = exchange.take_whole(await response.aread())
                headers = [(n, str(len(rest)).encode() if n.lower() == b"content-length" else v) for n, v in headers]
        exchange.status = response.status_code
        await send({"type": "http.response.start", "status": exchange.status, "headers": headers})
        if rest is None:
            async for part in response.aiter_bytes() if exchange.sent else response.aiter_raw():
                body = exchange.take_part(part) if exchange.sent else part
                if exchange.is_over:  # the client may ask again as soon as it has this
                    self._finish(exchange)
                await send({"type": "http.response.body", "body": body, "more_body": True})
            rest = exchange.take_end()
        self._finish(exchange)
        await send({"type": "http.response.body", "body": rest})

    def _finish(self, exchange: Exchange) -> None:
        if exchange.duration_s is None:
            exchange.finish()
            self._sessions.remember(exchange.session, exchange.call_ids, exchange.text, exchange.response_id)

    def _keep(self, exchange: Exchange) -> None:
        """Count an exchange and give it to the log."""
        if not exchange.sent:
            self.counts["passed"] += 1
            return
        failed = (exchange.status or 0) >= 400
        self.counts["measured"] += exchange.n_blocks > 0
        self.counts["failed"] += failed
        self.counts["cut"] += exchange.ended is not None and not failed
        is_silent = exchange.hides and not exchange.n_blocks and not exchange.ended
        if is_silent and (exchange.text or exchange.call_ids):
            self._server.say_once(f"sends no log-probabilities for {exchange.kind}, though asked")
        self._log.offer(exchange)


def smaller(refusal: str, k: int) -> int:
    """How many log-probabilities a server that refused `k` says it gives; 0 where it does not say."""
    numbers = _NUMBER.findall(refusal) if _NAMES_LOGPROBS.search(refusal) else []
    return max((n for n in map(int, numbers) if n < k), default=0)


def reason(error: Exception) -> str:
    """What an error of a connection says, without its number."""
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__


def without(headers: Iterable[tuple[bytes, bytes]], *names: bytes) -> list[tuple[bytes, bytes]]:
    """Headers whose names are none of these, which are in lower case."""
    return [(name, value) for name, value in headers if name.lower() not in names]


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; `ConfigError` if the address is taken or is none of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (while")[0]
        raise ConfigError(f"cannot listen on {host}, port {port} ({why}); choose another --port or --host") from error


def serve(app: Recorder, listening: socket.socket, say: Callable[[str], None]) -> None:
    """Serve until a signal comes, then until every answer under way has passed; a second signal cuts them off."""
    quiet: dict[str, Any] = {"log_config": None, "log_level": "critical", "server_header": False, "date_header": False}
    server = uvicorn.Server(uvicorn.Config(app, http="h11", ws="none", lifespan="off", timeout_keep_alive=75, **quiet))
    server.capture_signals = nullcontext  # type: ignore[method-assign, assignment]

    def end(*_: object) -> None:
        server.force_exit, server.should_exit = server.should_exit, True
        if not server.force_exit and (n := len(server.server_state.tasks)):
            are, them = agreeing(n, "is", "are"), agreeing(n, "it", "them")
            say(f"{count(n, 'answer')} {are} still under way; press Ctrl-C again to cut {them} off")

    with ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                stack.callback(signal.signal, number, signal.signal(number, end))
        gc.collect()
        gc.freeze()  # what is loaded by now stays: to look it through again would delay tokens by tens of milliseconds
        asyncio.run(server.serve(sockets=[listening]))

"""The server behind a recorder: where it is, and how it is asked for log-probabilities.

What it refuses is asked once for as many log-probabilities as it says it gives, else without, and that is remembered
for requests of the same kind: the same path and model, streamed or not, with or without tools.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import httpx

from deltah.errors import ConfigError
from deltah.recorder.asking import Fields, asks_itself, json_object, names_logprobs, smaller, with_logprobs
from deltah.recorder.exchange import Exchange, Headers

LOCAL: Final = ("localhost", "127.0.0.1", "::1")
"""Hosts that no proxy of the environment is asked for."""
FAILURES: Final = (httpx.TransportError, httpx.StreamError, httpx.DecodingError)
"""What is raised where no answer comes, or breaks off."""
_OF_BODY: Final = frozenset({b"content-length", b"content-encoding", b"accept-encoding"})
_UNFIT: Final = frozenset({400, 422})
"""A request that does not fit, for whatever reason; other refusals of log-probabilities name them."""
_KEPT_OPEN_S: Final = 4.0
"""Shorter than servers keep idle connections (uvicorn: 5 seconds)."""
_CONNECT_S: Final = 10.0
_CHECK_S: Final = 3.0
_SHOWN: Final = 200
"""Characters of a refusal that are shown."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """Requests that a server treats alike."""

    path: str
    model: str
    streamed: bool
    tools: bool

    def __str__(self) -> str:
        how = " and ".join(["streams"] * self.streamed + ["tools"] * self.tools)
        return f"{self.path}, model {self.model}" + (f", with {how}" if how else "")


class Upstream:
    """A server that is asked on behalf of clients.

    Args:
        url: With or without /v1.
        top_logprobs: Log-probabilities of each token to ask for.
        say: Takes what the user should know, one sentence each.

    Raises:
        ConfigError: if the URL is none of a server.
    """

    def __init__(self, url: str, top_logprobs: int, say: Callable[[str], None]) -> None:
        self.url = httpx.URL()
        with suppress(httpx.InvalidURL):
            self.url = httpx.URL(url)
        if self.url.scheme not in ("http", "https") or not self.url.host:
            raise ConfigError(f"--upstream {url!r}: expected the URL of a server, such as http://localhost:8000/v1")
        if self.url.query or self.url.fragment:
            raise ConfigError("--upstream: expected a URL without ? and #; give keys to the client, they pass through")
        self._own = self.url.raw_path.rstrip(b"/").removesuffix(b"/v1")
        self._top_logprobs, self._say = top_logprobs, say
        self._allowed: dict[_Kind, int] = {}
        self._said: set[object] = set()
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEPT_OPEN_S),
            trust_env=self.url.host not in LOCAL,
        )

    def __str__(self) -> str:
        """The URL without a password."""
        return str(self.url.copy_with(username=None, password=None)).rstrip("/")

    @property
    def path(self) -> str:
        """Path that clients are pointed at."""
        return self.url.path.rstrip("/") or "/v1"

    def at(self, path: bytes, query: bytes = b"") -> httpx.URL:
        """Where a request goes; a path of the server's own may stand before the client's or be left out."""
        whole = path if not self._own or path.startswith(self._own + b"/") else self._own + path
        return self.url.copy_with(raw_path=whole + (b"?" + query if query else b""))

    def problem(self) -> str | None:
        """Why the server does not answer now; None if it does, in whatever way."""
        try:
            httpx.get(self.at(b"/v1/models"), timeout=_CHECK_S, trust_env=self.url.host not in LOCAL)
        except httpx.HTTPError as error:
            return reason(error)
        return None

    async def send(self, method: str, url: httpx.URL, headers: Headers, content: bytes) -> httpx.Response:
        """Send one request as it is; its answer is open."""
        return await self._client.send(httpx.Request(method, url, headers=headers, content=content), stream=True)

    async def ask(self, url: httpx.URL, headers: Headers, content: bytes, exchange: Exchange) -> httpx.Response:
        """Send a request with log-probabilities asked for; with fewer, or without, where the server refuses them."""
        fields, kind = exchange.sent, _kind(exchange, exchange.sent)
        asked = 0 if asks_itself(exchange.endpoint, fields) else self._allowed.get(kind, self._top_logprobs)
        headers = [*without_headers(headers, _OF_BODY), (b"accept-encoding", b"identity")]
        k, refusal = asked, ""
        while True:
            exchange.hides = k > 0
            exchange.sent = with_logprobs(exchange.endpoint, fields, k) if k else fields
            response = await self.send("POST", url, headers, json_object(exchange.sent) if k else content)
            if not k or response.status_code < 400:
                break
            refusal = (await response.aread()).decode("utf-8", "replace")
            if response.status_code not in _UNFIT and not names_logprobs(refusal):
                break
            k = smaller(refusal, k) if k == asked else 0
        if k < asked and response.is_success:
            self._allowed[kind] = k
            what = f"gives at most {k} log-probabilities" if k else "refuses log-probabilities"
            self.say_once((kind, k), f"{self} {what} for {kind}: {' '.join(refusal.split())[:_SHOWN]}")
        return response

    def judge(self, exchange: Exchange) -> None:
        """Say it once if a server was asked for log-probabilities, and answered without."""
        if exchange.hides and not exchange.n_blocks and not exchange.ended and exchange.says_something:
            kind = _kind(exchange, exchange.sent)
            self.say_once((kind, None), f"{self} sends no log-probabilities for {kind}, though asked")

    def say_once(self, what: object, sentence: str) -> None:
        """Tell the user something, unless it was told."""
        if what not in self._said:
            self._said.add(what)
            self._say(sentence)

    def say_again(self, what: object) -> None:
        """Let something be told once more."""
        self._said.discard(what)


def reason(error: Exception) -> str:
    """What an error of a connection says, without its number."""
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__


def without_headers(headers: Iterable[tuple[bytes, bytes]], names: frozenset[bytes]) -> Headers:
    """Headers whose names are none of these, which are in lower case."""
    return [(name, value) for name, value in headers if name.lower() not in names]


def _kind(exchange: Exchange, fields: Fields) -> _Kind:
    model = fields.get("model", b"?").decode("utf-8", "replace").strip('"')
    has_tools = fields.get("tools", b"null") not in (b"[]", b"null")
    return _Kind(exchange.path, model, fields.get("stream") == b"true", has_tools)

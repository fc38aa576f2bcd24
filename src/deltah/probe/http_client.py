"""JSON over HTTP with retries, for servers that may be loading or busy."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import httpx

from deltah.errors import InvalidValueError, ServerError

RETRIED: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
MAX_WAIT_S: Final = 60.0
_SHOWN_CHARS: Final = 300
_DIRECT: Final = ("localhost", "127.0.0.1", "[::1]")
"""Hosts that no proxy of the environment is asked for."""


class RejectedError(ServerError):
    """The server understood the request and does not take it (HTTP 400, 413 or 422)."""


@dataclass(frozen=True, kw_only=True)
class JsonClient:
    """Client of one server; its connections are shared by threads."""

    base: str
    """URL that ends in /v1, see `base_url`."""
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 600.0
    """Of connecting, sending and waiting, each."""
    tries: int = 6
    patient: bool = True
    """Whether to try again where no server answers: False until one has."""
    sleep: Callable[[float], None] = time.sleep

    @cached_property
    def _http(self) -> httpx.Client:
        headers = {"Content-Type": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        mounts = {f"all://{host}": None for host in _DIRECT}
        return httpx.Client(headers=headers, timeout=self.timeout_s, mounts=mounts, follow_redirects=True)

    def get(self, path: str) -> dict[str, Any]:
        """GET a JSON object; errors as `post`."""
        return self._send("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST a JSON object and read one.

        Raises:
            RejectedError: for HTTP 400, 413 and 422.
            ServerError: if access is refused, the path or model does not exist, the answer is not JSON, or the server
                does not answer after all tries; if not `patient`, at once where there is no server.
        """
        return self._send("POST", path, body)

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        url, failure = f"{self.base}{path}", ""
        data = None if body is None else json.dumps(body).encode()
        for attempt in range(self.tries):
            wait = 0.5 * 2.0**attempt
            try:
                response = self._http.request(method, url, content=data)
            except httpx.ConnectError as error:
                if not self.patient:
                    raise ServerError(
                        f"no server answers at {self.base} ({error}); check --server, and that it runs"
                    ) from error
                failure = str(error)
            except httpx.RequestError as error:
                failure = str(error) or type(error).__name__
            else:
                if response.is_success:
                    return _object(response, url)
                failure, wait = self._failure(response, url), _retry_after(response, wait)
            if attempt + 1 < self.tries:
                self.sleep(min(wait, MAX_WAIT_S))
        raise ServerError(
            f"{url} did not answer after {self.tries} tries ({failure}); check that the server runs, then run the same "
            "command again: it continues where it stopped"
        )

    def _failure(self, response: httpx.Response, url: str) -> str:
        """What the server says, if trying again can help.

        Raises:
            ServerError: if it cannot.
        """
        code, said = response.status_code, _message(response)
        if code in RETRIED:
            return f"HTTP {code}: {said}"
        if code in (401, 403):
            key = "no API key was given" if self.api_key is None else "the API key was refused"
            raise ServerError(f"{url} refuses access (HTTP {code}), {key}; name a variable with --api-key-env")
        if code == 404:
            raise ServerError(f"{url} does not exist (HTTP 404: {said}); check --server and --served-model")
        if code in (400, 413, 422):
            raise RejectedError(f"{url} rejects the request (HTTP {code}: {said})")
        raise ServerError(f"{url} answered HTTP {code}: {said}")


def base_url(url: str) -> str:
    """Normalise a server's URL to one that ends in /v1.

    Raises:
        InvalidValueError: if it is no http(s) URL.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidValueError(f"the server is {url!r}; expected a URL such as http://localhost:8000")
    stripped = url.rstrip("/")
    return stripped if stripped.endswith("/v1") else f"{stripped}/v1"


def _object(response: httpx.Response, url: str) -> dict[str, Any]:
    try:
        value = response.json()
    except (ValueError, RecursionError) as error:
        raise ServerError(f"{url} answered with something that is not JSON; is it an OpenAI-compatible API?") from error
    if not isinstance(value, dict):
        raise ServerError(f"{url} answered with a JSON {type(value).__name__}; expected an object")
    return value


def _message(response: httpx.Response) -> str:
    """The server's own words, from the shapes in which servers put them."""
    text = response.text
    try:
        value = response.json()
        inner = value.get("error", value) if isinstance(value, dict) else value
        found = inner.get("message") or inner.get("detail") if isinstance(inner, dict) else inner
        text = found if isinstance(found, str) else json.dumps(found or value)
    except (ValueError, RecursionError):
        pass
    return " ".join(text.split())[:_SHOWN_CHARS] or response.reason_phrase


def _retry_after(response: httpx.Response, usual: float) -> float:
    """Seconds that the server asks to wait; `usual` if it names none."""
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return usual

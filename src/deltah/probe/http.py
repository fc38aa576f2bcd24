"""JSON over HTTP with retries: the little of a client that a probe needs, from the standard library.

A probe sends few, heavy requests: the server reads a whole context for each. Connection reuse, which a client library
would add, does not show beside that, and without one the command works on the base installation.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from socket import gaierror
from typing import Any, Final, TypeGuard

from deltah.errors import InvalidValueError, ServerError

RETRIED: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
MAX_WAIT_S: Final = 60.0
_SHOWN_CHARS: Final = 300


class RejectedError(ServerError):
    """The server understood the request and does not take it (HTTP 400, 413 or 422)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonClient:
    """Client of one server."""

    base: str
    """URL that ends in /v1, see `base_url`."""
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 600.0
    """Per request."""
    tries: int = 6
    patient: bool = True
    """Whether a server that is not there is tried again: False while nothing shows that there ever was one."""
    sleep: Callable[[float], None] = time.sleep

    def get(self, path: str) -> dict[str, Any]:
        """GET a JSON object; errors as `post`."""
        return self._send(path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST a JSON object and read one.

        Raises:
            RejectedError: for HTTP 400, 413 and 422.
            ServerError: if access is refused, the path or model does not exist, the answer is not JSON, or the server
                does not answer after all tries; if not `patient`, at once where there is no server.
        """
        return self._send(path, json.dumps(body).encode())

    def _send(self, path: str, data: bytes | None) -> dict[str, Any]:
        url = f"{self.base}{path}"
        failure = ""
        for attempt in range(self.tries):
            try:
                with urllib.request.urlopen(self._request(url, data), timeout=self.timeout_s) as response:
                    return _object(response.read(), url)
            except urllib.error.HTTPError as error:
                failure, wait = self._read_failure(error, url), _retry_after(error)
            except (urllib.error.URLError, OSError, HTTPException) as error:
                if not self.patient and _is_absent(error):
                    raise ServerError(
                        f"no server answers at {self.base} ({error.reason}); check --server, and that it runs"
                    ) from error
                failure, wait = f"{getattr(error, 'reason', None) or error}", None
            if attempt + 1 < self.tries:
                self.sleep(min(wait if wait is not None else 0.5 * 2.0**attempt, MAX_WAIT_S))
        raise ServerError(
            f"{url} did not answer after {self.tries} tries ({failure}); check that the server runs, then run the same "
            "command again: it continues where it stopped"
        )

    def _request(self, url: str, data: bytes | None) -> urllib.request.Request:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return urllib.request.Request(url, data=data, headers=headers)

    def _read_failure(self, error: urllib.error.HTTPError, url: str) -> str:
        """What the server says, if trying again can help.

        Raises:
            ServerError: if it cannot.
        """
        said = _message(error)
        if error.code in RETRIED:
            return f"HTTP {error.code}: {said}"
        if error.code in (401, 403):
            key = "the API key was refused" if self.api_key is not None else "no API key was given"
            raise ServerError(f"{url} refuses access (HTTP {error.code}), {key}; name a variable with --api-key-env")
        if error.code == 404:
            raise ServerError(f"{url} does not exist (HTTP 404: {said}); check --server and --served-model")
        if error.code in (400, 413, 422):
            raise RejectedError(f"{url} rejects the request (HTTP {error.code}: {said})")
        raise ServerError(f"{url} answered HTTP {error.code}: {said}")


def base_url(url: str) -> str:
    """Normalise a server's URL to one that ends in /v1.

    Raises:
        InvalidValueError: if it is no http(s) URL.
    """
    if not url.startswith(("http://", "https://")):
        raise InvalidValueError(f"the server is {url!r}; expected a URL such as http://localhost:8000")
    stripped = url.rstrip("/")
    return stripped if stripped.endswith("/v1") else f"{stripped}/v1"


def _object(data: bytes, url: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ServerError(f"{url} answered with something that is not JSON; is it an OpenAI-compatible API?") from error
    if not isinstance(value, dict):
        raise ServerError(f"{url} answered with a JSON {type(value).__name__}; expected an object")
    return value


def _message(error: urllib.error.HTTPError) -> str:
    """The server's own words, from the shapes in which servers put them."""
    try:
        text = error.read().decode("utf-8", "replace")
    except (OSError, HTTPException):
        text = ""
    try:
        value = json.loads(text)
        inner = value.get("error", value) if isinstance(value, dict) else value
        found = inner.get("message") or inner.get("detail") if isinstance(inner, dict) else inner
        text = found if isinstance(found, str) else json.dumps(found or value)
    except (ValueError, RecursionError):
        pass
    return " ".join(text.split())[:_SHOWN_CHARS] or str(error.reason)


def _is_absent(error: Exception) -> TypeGuard[urllib.error.URLError]:
    """Whether nothing listens there, or the host has no address."""
    return isinstance(error, urllib.error.URLError) and isinstance(error.reason, ConnectionRefusedError | gaierror)


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    """Seconds that the server asks to wait; None if it names none."""
    value = error.headers.get("Retry-After") if error.headers else None
    try:
        return max(0.0, float(value)) if value is not None else None
    except ValueError:
        return None

"""JSON over HTTP with a server that reports the log-probabilities of given text, in one of three dialects.

| dialect | request | answer |
| --- | --- | --- |
| chat | chat/completions, `prompt_logprobs`, `continue_final_message` | `prompt_logprobs`: one object a prompt token |
| completions | completions on rendered text, `prompt_logprobs` | the same, in `choices[0]` |
| echo | completions on rendered text, `echo`, `logprobs` | `choices[0].logprobs`, prompt first, then what was drawn |

The first two are vLLM's; a position's first entry is the prompt's own token, then come the k best, keyed by token id.
Echo is the legacy protocol of llama-cpp-python, SGLang and vLLM. It keys alternatives by their text, so that two tokens
of equal text hide one another; where that may have happened the position's entropy is not measured. One token is
generated in every request: llama-cpp-python reads `max_tokens=0` as "no limit".
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, NoReturn

import httpx
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from deltah.errors import ConfigError, InvalidValueError, ServerError
from deltah.probe.queries import QueryError
from deltah.traces.messages import Message, with_object_arguments

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

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """POST a JSON object, or GET without one, and read a JSON object."""
        url, failure = f"{self.base}{path}", ""
        method, data = (
            ("GET", None) if body is None else ("POST", json.dumps(body).encode())
        )  # ASCII: no lone surrogates
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
        """What the server says, where trying again can help; else an error."""
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
    """Normalise a server's URL to one that ends in /v1."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidValueError(f"the server is {url!r}; expected a URL such as http://localhost:8000")
    return url.rstrip("/").removesuffix("/v1") + "/v1"


def _object(response: httpx.Response, url: str) -> dict[str, Any]:
    try:
        value = response.json()
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ServerError(f"{url} answered with something that is no JSON object; is it an OpenAI-compatible API?")
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


_BROKEN = "\ufffd"
"""What stands for bytes that are no character of their own."""


class Dialect(StrEnum):
    """Forms of request."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    ECHO = "echo"


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """What a server says of n tokens of a prompt."""

    texts: list[str]
    logprobs: list[float | None]
    """None for the first token, which nothing predicts."""
    top: list[list[float]]
    """Log-probabilities of the most likely tokens, the prompt's own among them; empty where they are not reliable."""


class IgnoredError(ServerError):
    """The server answers, but without log-probabilities of the prompt."""


def read_prompt(dialect: Dialect, answer: Mapping[str, Any], top_k: int) -> PromptTokens:
    """Tokens of the prompt in a server's answer."""
    try:
        if dialect is Dialect.ECHO:
            return _read_echo(answer, top_k)
        block = answer["prompt_logprobs"] if dialect is Dialect.CHAT else answer["choices"][0]["prompt_logprobs"]
        return _read_positions(block)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise IgnoredError(
            f"the server ignores the request for log-probabilities of the prompt ({dialect.value}): its answer has no "
            "such block; vLLM (prompt_logprobs), llama-cpp-python and SGLang (echo, with --chat-template) report them, "
            "llama.cpp's own server and hosted chat APIs do not"
        ) from error


def _read_positions(block: Sequence[Mapping[str, Any] | None]) -> PromptTokens:
    texts, logprobs, top = list[str](), list[float | None](), list[list[float]]()
    for position in block:
        entries = list((position or {}).values())
        texts.append(str(entries[0].get("decoded_token") or "") if entries else "")
        logprobs.append(float(entries[0]["logprob"]) if entries else None)
        top.append([float(entry["logprob"]) for entry in entries])
    if all(value is None for value in logprobs):
        raise ValueError("no position is reported")
    return PromptTokens(texts, logprobs, top)


def _read_echo(answer: Mapping[str, Any], top_k: int) -> PromptTokens:
    block = answer["choices"][0]["logprobs"]
    texts, logprobs = list(map(str, block["tokens"])), list(block["token_logprobs"])
    alternatives = block.get("top_logprobs") or [None] * len(texts)
    drawn = int(answer["usage"]["completion_tokens"])
    n = len(texts) - drawn
    if n < 2 or len(logprobs) != len(texts) or len(alternatives) != len(texts):
        raise ValueError("the prompt is not echoed")
    values = [None if value is None else float(value) for value in logprobs[:n]]
    return PromptTokens(texts[:n], values, [_reliable(entry, top_k) for entry in alternatives[:n]])


def _reliable(entry: Mapping[str, float] | None, top_k: int) -> list[float]:
    """Log-probabilities of one position, unless texts of several tokens may have fallen together."""
    if not entry or len(entry) < top_k or any(not text or _BROKEN in text for text in entry):
        return []
    return [float(value) for value in entry.values()]


def tail_start(texts: Sequence[str], tail: str) -> int | None:
    """First of the last tokens that together spell a text, white space at the end aside; None if they do not."""
    spelled = ""
    for start in range(len(texts) - 1, -1, -1):
        spelled = (texts[start] + spelled).rstrip()
        if len(spelled) >= len(tail):
            return start if spelled.endswith(tail) else None
    return None


RENDER_ERRORS: Final = (TemplateError, TypeError, ValueError, LookupError, AttributeError)
"""What a chat template, or a specification of a parser, can raise."""


class ChatTemplate:
    """One compiled chat template."""

    def __init__(self, source: str, *, eos_token: str = "", tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self.source = source
        self._eos_token = eos_token
        self._tools = [dict(tool) for tool in tools] or None
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
        environment.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ConfigError(f"the chat template is not valid Jinja: {error}") from error

    def render(self, messages: Sequence[Message]) -> str:
        """Text of messages up to where the next assistant message begins."""
        try:
            return self._template.render(
                messages=with_object_arguments(messages),
                tools=self._tools,
                add_generation_prompt=True,
                bos_token="",
                eos_token=self._eos_token,
            )
        except RENDER_ERRORS as error:
            raise QueryError(f"the chat template cannot render the messages: {error}") from error


def load_template(path: Path | None, tools: Sequence[Mapping[str, Any]] = ()) -> ChatTemplate | None:
    """Read a template: a Jinja file, a tokenizer_config.json, or a folder that holds either; None for None."""
    if path is None:
        return None
    folder = path if path.is_dir() else path.parent
    is_config = path.suffix == ".json"
    jinja = path if path.is_file() and not is_config else folder / "chat_template.jinja"
    config = path if is_config else folder / "tokenizer_config.json"
    settings = _settings(config) if is_config or config.exists() else {}
    source = _named(settings.get("chat_template")) if is_config or not jinja.exists() else _read(jinja)
    if not source:
        raise ConfigError(
            f"{path} holds no chat template; expected a Jinja file, a tokenizer_config.json with 'chat_template', or a "
            "model folder"
        )
    eos = settings.get("eos_token")  # a text, or an object with its settings
    eos_token = eos.get("content") if isinstance(eos, dict) else eos
    return ChatTemplate(source, eos_token=eos_token if isinstance(eos_token, str) else "", tools=tools)


def _settings(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read(path))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the chat template {path}: {error}") from error


def _named(value: Any) -> str | None:
    """A template, or the one called "tool_use", else "default", of a list of named ones."""
    if isinstance(value, list):
        by_name = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = by_name.get("tool_use") or by_name.get("default")
    return value if isinstance(value, str) else None


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: passes its content through."""

    tags = {"generation"}  # noqa: RUF012 - the attribute's name and type are Jinja's

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Read the block's body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)

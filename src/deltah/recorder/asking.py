"""What is asked of a server beside what its client asked, and what the client does not see of the answer.

| endpoint | added to the request | log-probabilities in the answer |
| --- | --- | --- |
| chat/completions | `logprobs`, `top_logprobs` | `choices[].logprobs` |
| completions | `logprobs` | `choices[].logprobs` |
| responses | `top_logprobs`, `include` | `logprobs` of every text part, in each event |

Requests and answers are cut and put together as bytes: a value that is not ours leaves as it came.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec

Fields = dict[str, bytes]
"""Top-level names of a JSON object and their values, undecoded."""

_INCLUDE: Final = "message.output_text.logprobs"
_KEY: Final = re.compile(rb'"logprobs"\s*:\s*')
"""A key: inside a text its quotes would be escaped."""
_NOT_ASKED: Final = (None, b"null", b"false")
_EMPTY: Final = (b"", b"null", b"[]", b"{}")
_NUMBER: Final = re.compile(r"(?<![\w.-])\d{1,3}(?![\w-])")
_HALF: Final = re.compile(
    rb"\\u[dD][89abAB]\w\w(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]\w\w)\\u[dD][c-fC-F]\w\w",
)
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Endpoint(StrEnum):
    """What is recorded, by the end of its path."""

    CHAT = "/chat/completions"
    TEXT = "/completions"
    RESPONSES = "/responses"


class Piece(msgspec.Struct):
    """What is looked at in an answer, one of its chunks or events, or a part of these."""

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
    text: Any = None
    id: Any = None
    call_id: Any = None


_PIECE: Final = msgspec.json.Decoder(Piece)


def endpoint_of(method: str, path: str) -> Endpoint | None:
    """The endpoint of a request that is recorded; None for one that only passes through."""
    return next((e for e in Endpoint if path.rstrip("/").endswith(e)), None) if method == "POST" else None


def fields_of(body: bytes) -> Fields | None:
    """The fields of a JSON object; None for anything else."""
    try:
        return {name: bytes(value) for name, value in _FIELDS.decode(body).items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _lenient_fields(body)


def _lenient_fields(body: bytes) -> Fields | None:
    """As `fields_of`, for what msgspec refuses, such as half of a surrogate pair."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return {name: json.dumps(v).encode() for name, v in value.items()} if isinstance(value, dict) else None


def json_object(fields: Mapping[str, bytes]) -> bytes:
    """The JSON object of these fields."""
    return b"{" + b",".join(json.dumps(name).encode() + b":" + value for name, value in fields.items()) + b"}"


def asks_itself(endpoint: Endpoint, fields: Fields) -> bool:
    """Whether the client asks for log-probabilities, so that nothing is added or taken away."""
    if endpoint is Endpoint.RESPONSES:
        return b"logprobs" in fields.get("include", b"") or fields.get("top_logprobs") not in (*_NOT_ASKED, b"0")
    top = fields.get("top_logprobs") if endpoint is Endpoint.CHAT else None
    return fields.get("logprobs") not in _NOT_ASKED or top not in (*_NOT_ASKED, b"0")


def with_logprobs(endpoint: Endpoint, fields: Fields, k: int) -> Fields:
    """The fields of the same request for the `k` best log-probabilities of each token."""
    number = str(k).encode()
    if endpoint is Endpoint.TEXT:
        return fields | {"logprobs": number}
    if endpoint is Endpoint.CHAT:
        return fields | {"logprobs": b"true", "top_logprobs": number}
    given = msgspec.json.decode(fields.get("include", b"null"))
    included = [*(given if isinstance(given, list) else []), _INCLUDE]
    return fields | {"top_logprobs": number, "include": json.dumps(included).encode()}


def legible(data: bytes) -> bytes:
    """The same number of bytes without halves of surrogate pairs, which msgspec does not decode."""
    return _HALF.sub(rb"\\ufffd", data)


def piece_of(data: bytes) -> Piece | None:
    """An answer, chunk or event; None where it does not have the shape of one."""
    try:
        return _PIECE.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def blocks(piece: Piece) -> Iterator[bytes]:
    """Every block of log-probabilities that holds any."""
    if (block := bytes(piece.logprobs)) not in _EMPTY:
        yield block
    children = [piece.message, piece.delta, piece.response, piece.item, piece.part]
    for several in (piece.choices, piece.output, piece.content):
        children += several if isinstance(several, list) else []
    for child in children:
        if isinstance(child, Piece):
            yield from blocks(child)


def without(data: bytes, cut: list[bytes], looked: bytes) -> bytes:
    """The same bytes with null, or an empty list, for blocks that were found in `looked`, at the same places."""
    kept, done = [], 0
    for key in _KEY.finditer(looked) if cut else ():
        block = next((b for b in cut if looked.startswith(b, key.end())), None)
        if block is not None and key.start() >= done:
            kept += [data[done : key.end()], b"[]" if block.startswith(b"[") else b"null"]
            done = key.end() + len(block)
    return b"".join([*kept, data[done:]])


def names_logprobs(refusal: str) -> bool:
    """Whether a refusal speaks of log-probabilities; TGI's calls them top tokens."""
    return re.search("logprob|top_n_tokens", refusal, re.IGNORECASE) is not None


def smaller(refusal: str, k: int) -> int:
    """How many log-probabilities a server that refused `k` says it gives; 0 where it does not say."""
    if not names_logprobs(refusal):
        return 0
    return max((n for n in map(int, _NUMBER.findall(refusal)) if n < k), default=0)

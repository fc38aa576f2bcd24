"""What stands around a record: JSON kept as text, lists of records, inputs beside outputs, envelopes of log services.

`unwrapped` is asked where no importer can read a record as it stands. It decides by what it finds inside, not by the
name of a service: what it takes out must be a record of a known format. Importers see plain records only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from deltah.errors import DataError
from deltah.traces.files import Line, base_name
from deltah.traces.importing import recognise
from deltah.traces.parts import are_parts, first_of, is_message, json_value, to_messages, to_response

_ANY: Final = msgspec.json.Decoder(Any)
_BODY: Final = "s?(?:_?(?:body|payload|json|data|messages?))*"
_REQUEST: Final = re.compile(f"(?:llm_?)?(?:request|req|input|prompt){_BODY}", re.IGNORECASE)
_RESPONSE: Final = re.compile(f"(?:llm_?)?(?:response|res|output|completion|reply){_BODY}", re.IGNORECASE)
_SIDE: Final = re.compile(f"{_REQUEST.pattern}|{_RESPONSE.pattern}", re.IGNORECASE)
_JSON: Final = re.compile(
    f"{_SIDE.pattern}|body|messages?|data|choices|log|payload|event|record|text_?payload", re.IGNORECASE
)
"""Fields whose text may be the JSON of a record."""
_BESIDE: Final = frozenset((
    "id", "session_id", "conversation_id", "thread_id", "started_at", "duration_s", "model", "vocab_size", "metadata",
    "score", "outcome", "answer", "golden_answers", "logprobs_mode",
))  # fmt: skip
"""Fields of an envelope that a record inside it keeps, unless it has its own."""
_OWN_SHAPES: Final = frozenset(("choices", "object", "type", "error", "done"))
"""Names in responses that importers read themselves."""
_ANSWERS: Final = frozenset(("role", "message", "output", "candidates", "generations", "content", "text"))
"""Names of what holds the answer in other responses."""
_NO_ANSWER: Final = re.compile(
    r"data:|event:|\s*<(?:!doctype|html|\?xml)\b|\s*(?:error:? *)?(?:[45]\d\d:? *)?(?:bad gateway|gateway time-?out|"
    r"service (?:temporarily )?unavailable|internal server error|too many requests|unauthorized|forbidden|"
    r"upstream (?:connect|request)|no healthy upstream|rate limit exceeded|error code: \d+)",
    re.IGNORECASE,
)
"""Beginning of the text of a stream, or of what a proxy sends instead of an answer."""
MAX_DEPTH: Final = 5
"""Of envelopes inside one another."""


def unwrapped(data: bytes) -> list[bytes]:
    """Records of known formats inside one that is not; empty if there are none."""
    try:
        value: object = _ANY.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    return [msgspec.json.encode(record) for record in _inside(value, MAX_DEPTH) if record != value]


def is_foreign(line: Line, path: str) -> bool:
    """Whether a file's first record is sound but of no known format: tasks, a corpus or plain text."""
    data = line.data.removeprefix(b"data:")
    try:
        return line.damage is None and recognise(data) is None and not unwrapped(data)
    except DataError:  # a damaged record, behind which others may stand, unless the file need not hold JSON
        return not unwrapped(data) and base_name(path).lower().endswith((".log", ".txt"))


def _inside(value: Any, depth: int) -> Iterator[dict[str, Any]]:
    """Records in a value, from the plainest reading to the deepest."""
    if isinstance(value, str):
        value = json_value(value)
    if isinstance(value, list):
        if _are_messages(value):
            yield {"messages": _plain(value)}
        else:
            yield from (record for item in value if depth for record in _inside(item, depth - 1))
        return
    if not isinstance(value, dict):
        return
    record = _opened(value)
    readings = [one for one in (record, _paired(record)) if one and recognise(msgspec.json.encode(one)) is not None]
    if readings:  # as it stands, a record was tried already
        yield from [one for one in readings if one != value or depth < MAX_DEPTH][:1]
        return
    beside = {name: value for name, value in record.items() if name in _BESIDE}
    answered = any(map(_RESPONSE.fullmatch, record))  # then a request alone is no conversation
    for inner in (v for key, v in record.items() if depth and not (answered and _REQUEST.fullmatch(key))):
        found = list(_inside(inner, depth - 1)) if isinstance(inner, dict | list) else []
        if found:
            yield from (beside | one for one in found)
            return


def _opened(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the JSON that its fields, and those of its request and response, hold as text."""
    opened = _with_values(record)
    for name, value in opened.items():
        if isinstance(value, dict) and _SIDE.fullmatch(name):
            inner = _with_values(value)
            opened[name] = first_of(inner, ("inputBodyJson", "outputBodyJson")) or inner  # Bedrock's log of invocations
    if _are_messages(opened.get("messages")):
        opened["messages"] = _plain(opened["messages"])
    return opened


def _with_values(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: json_value(value) if _JSON.fullmatch(key) else value for key, value in fields.items()}


def _paired(record: dict[str, Any]) -> dict[str, Any] | None:
    """A record as request and response, where it names or spells them otherwise; None where it has none of the two."""
    asked = [key for key, v in record.items() if _REQUEST.fullmatch(key) and isinstance(v, dict | list)]
    answered = [key for key, v in record.items() if _RESPONSE.fullmatch(key) and v and isinstance(v, dict | list | str)]
    if not (asked and answered):
        return None
    given, reply = record[asked[0]], record[answered[0]]
    beside = {name: value for name, value in record.items() if name not in (asked[0], answered[0])}
    if isinstance(given, dict) and "input" in given and isinstance(reply, dict) and "output" in reply:
        return beside | {"request": given, "response": reply}  # OpenAI Responses
    messages = first_of(given, ("messages", "input", "contents", "prompt")) if isinstance(given, dict) else given
    if not _are_messages(messages):
        return None
    request = (given if isinstance(given, dict) else {}) | {"messages": _plain(messages)}
    if _are_messages(reply):
        return beside | {"messages": [*request["messages"], *_plain(reply)]}
    return beside | {"request": request, "response": _reply(reply)}


def _reply(given: Any) -> Any:
    """A response; one that no importer knows in OpenAI's shape."""
    if isinstance(given, dict):
        refused = _ANSWERS & given.keys() == {"message"} and isinstance(given["message"], str)
        known = refused or bool(_OWN_SHAPES & given.keys()) or not _ANSWERS & given.keys()
    else:
        known = bool(_NO_ANSWER.match(given)) if isinstance(given, str) else not are_parts(given)
    return given if known else msgspec.to_builtins(to_response(given))


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_message, value))


def _plain(messages: list[Any]) -> list[Any]:
    """Messages as OpenAI writes them; those that it could have written stay as they are."""
    own = all("role" in m and m["role"] != "model" and ("content" in m or "tool_calls" in m) for m in messages)
    return messages if own else [msgspec.to_builtins(message) for message in to_messages(messages)]

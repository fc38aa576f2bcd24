"""Which conversation a request belongs to, as far as the requests and replies that passed tell.

A client that names its session in a header decides itself. Otherwise a conversation is known by its beginning: what the
user said before the first reply. Several conversations may begin alike (samples of one question), so each request that
holds no reply yet begins a session of its own, and a later one is recognised by the reply that its history ends with:
the ids of the tool calls, or the text. Names differ from one start of the recorder to the next.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from deltah.recorder.asking import Fields
from deltah.traces.conversation import message_text
from deltah.traces.openai_schema import FunctionCall, Message, MessageToolCall

HEADERS: Final = ("x-session-id", "x-conversation-id", "x-thread-id")
_METADATA: Final = ("session_id", "conversation_id", "thread_id")
_MAX_KEPT: Final = 20_000
_MAX_ALIKE: Final = 256
_UNIQUE: Final = 16
"""Characters of an id from which on it is drawn at random: it says enough where the beginning was rewritten."""
_MESSAGES: Final = msgspec.json.Decoder(list[Message])
_Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a request belongs to."""

    session: str
    beginning: str | None = None
    """Identifies how it begins; None where its client names it."""


class Sessions:
    """Finds the conversation of a request.

    Args:
        salt: Tells one start of the recorder from another.
        header: Header in which clients name their session, beside `HEADERS`.
    """

    def __init__(self, salt: str, header: str | None = None) -> None:
        self._salt = salt
        self._headers = [name.lower().encode() for name in ((header,) if header else ()) + HEADERS]
        self._n_begun: dict[str, int] = {}
        self._known: dict[_Key, dict[Conversation, None]] = {}
        """Conversations by what their last reply is recognised by, the latest last."""

    def find(self, fields: Fields, headers: Sequence[tuple[bytes, bytes]]) -> Conversation:
        """The conversation of a request, a new one where it continues none."""
        if (named := self._named(fields, headers)) is not None:
            return Conversation(named)
        messages = _messages(fields)
        turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
        asked = [message_text(m.content) for m in messages[: turns[0] if turns else None] if m.role == "user"]
        beginning = self._digest(asked or [str(fields.get(name)) for name in ("messages", "prompt", "input")])
        keys = [key for i in reversed(turns) for key in _keys(beginning, _ids(messages[i]), messages[i].content)]
        for key in (_response_key(fields), *keys, *([(beginning,)] if turns else [])):
            if known := self._known.get(key):
                # Of equal replies each is continued once, and the last that is left as often as it comes.
                return known.popitem()[0] if len(known) > 1 else next(iter(known))
        n = self._n_begun[beginning] = self._n_begun.pop(beginning, 0) + 1
        _shorten(self._n_begun, _MAX_KEPT)
        begun = Conversation(beginning if n == 1 else f"{beginning}-{n}", beginning)
        self._known[(beginning,)] = {begun: None}
        return begun

    def remember(
        self, conversation: Conversation, call_ids: Sequence[str], text: str, response_id: str | None = None
    ) -> None:
        """Take a reply, by whose calls, text or own id the next request of its conversation is recognised."""
        keys: list[_Key] = [("response", json.dumps(response_id).encode())]
        if conversation.beginning is not None:
            keys += _keys(conversation.beginning, call_ids, text)
        for key in keys:
            known = self._known[key] = self._known.pop(key, {})
            known[conversation] = None
            _shorten(known, _MAX_ALIKE)
        _shorten(self._known, _MAX_KEPT)

    def _named(self, fields: Fields, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
        given = dict(headers)
        for name in self._headers:
            if value := given.get(name):
                return value.decode("latin-1")
        metadata = json.loads(fields.get("metadata", b"null"))
        found = [metadata.get(name) for name in _METADATA] if isinstance(metadata, dict) else []
        return next((str(value) for value in found if isinstance(value, str | int) and value != ""), None)

    def _digest(self, texts: Sequence[str]) -> str:
        told = "\0".join([self._salt, *texts]).encode("utf-8", errors="replace")
        return hashlib.blake2b(told, digest_size=6).hexdigest()


def _shorten(kept: dict[Any, Any], length: int) -> None:
    """Drop the oldest."""
    while len(kept) > length:
        del kept[next(iter(kept))]


def _response_key(fields: Fields) -> _Key:
    return ("response", fields.get("previous_response_id"))


def _messages(fields: Fields) -> list[Message]:
    """Messages of a request, of the items of one to the responses endpoint too; none where they cannot be read."""
    try:
        if "messages" in fields:
            return _MESSAGES.decode(fields["messages"])
        items = json.loads(fields.get("input", b"[]"))
        return [_item_message(item) for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    except (ValueError, msgspec.DecodeError, RecursionError):
        return []


def _item_message(item: dict[str, Any]) -> Message:
    if item.get("type") == "function_call":
        call = MessageToolCall(id=item.get("call_id"), function=FunctionCall(name=item.get("name")))
        return Message(role="assistant", tool_calls=[call])
    return Message(role=str(item.get("role")), content=item.get("content"))


def _ids(message: Message) -> list[str]:
    return [call.id for call in message.tool_calls or [] if call.id]


def _keys(beginning: str, call_ids: Sequence[str], content: Any) -> list[_Key]:
    """What identifies a reply, the surest first; ids alone may recur, a text may be trimmed."""
    said = message_text(content).rpartition("</think>")[2].strip()
    ids = tuple(sorted(set(call_ids)))  # some servers repeat the id in each chunk
    keys: list[_Key] = [(beginning, "both", ids, hash(said))] if ids and said else []
    keys += [(beginning, "ids", ids)] if ids else []
    keys += [(beginning, "text", hash(said))] if said else []
    return keys + ([("ids", ids)] if ids and min(map(len, ids)) >= _UNIQUE else [])

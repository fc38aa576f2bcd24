"""What a turn in a history shows of the logged reply that it repeats.

Clients rewrite what they send back: they drop thinking and the text beside calls, trim and cut text, repair arguments,
add calls that they found in the text, remove old messages or put a summary in their place. `Evidence` weighs
what is left of a turn.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from functools import cached_property
from itertools import accumulate, islice, takewhile
from typing import Final, NamedTuple

from deltah.traces.borders import calls_of
from deltah.traces.conversation import LoggedMessage, message_text
from deltah.traces.dialects import RESULT_BLOCK, call_extents
from deltah.traces.openai_schema import Message

INSTRUCTIONS: Final = ("system", "developer")
_LEAST: Final = 12
"""Characters of a user message that is known again in a longer one."""
_WORD: Final = re.compile(r"\w+")
COUNTED: Final = re.compile(r"\D*\d{0,4}")
"""Ids that count or name calls, such as `call_0`: every conversation has them."""


class Joined(StrEnum):
    """What joined an API call to the one before, where its history does not repeat it word for word."""

    IDS = "tool-call ids"
    TEXT = "text"
    CALLS = "calls"
    ORDER = "order of messages"
    SESSION = "session ids"


class Agreement(IntEnum):
    """Of two texts, lists of calls, or lists of user messages."""

    DIFFERENT = 0
    SILENT = 1
    """One is empty."""
    PART = 2
    """One holds the other."""
    SAME = 3


class Turn(NamedTuple):
    """An assistant's message, however it is spelled."""

    text: str
    """Without thinking, calls and repeated white space."""
    calls: tuple[tuple[str, str], ...]
    """Names and canonical arguments, also of calls in the text."""
    ids: frozenset[str]


class Trail(NamedTuple):
    """What a history says up to one of its messages."""

    words: int = 0
    """Running hash of what user and assistant said."""
    users: tuple[str, ...] = ()
    n_turns: int = 0
    has_calls: bool = False
    """Whether calls wait for a result."""

    def after(self, message: Message, turn: Turn | None = None) -> Trail:
        """The trail that goes on with a message; `turn` where it is known already."""
        if message.role == "assistant":
            text, calls, _ = turn or turn_of(message)
            return Trail(hash((self.words, text, calls)), self.users, self.n_turns + 1, bool(calls))
        if message.role in INSTRUCTIONS:
            return self
        text = " ".join(message_text(message.content).split()) if message.role == "user" else ""
        if message.role != "user" or self.has_calls or RESULT_BLOCK.match(text):
            return self._replace(has_calls=False)
        return self._replace(words=hash((self.words, text)), users=(*self.users, text))


class History:
    """What an API call says was said before."""

    def __init__(self, messages: Sequence[LoggedMessage], session: str | None) -> None:
        self.session = session
        self.messages = [one.message for one in messages]
        self.turns = [i for i, message in enumerate(self.messages) if message.role == "assistant"]
        self.said: list[int] = []
        """Entry i identifies what was said up to and including message i, word for word."""
        # Instructions count only where no user speaks: many clients write the time into them.
        self._passed_over = INSTRUCTIONS if any(message.role == "user" for message in self.messages) else ()
        for message in self.messages:
            self.said.append(self.said_with(message))

    def said_with(self, message: Message) -> int:
        """Identifies all that was said and one more message."""
        current = self.said[-1] if self.said else 0
        return current if message.role in self._passed_over else hash((current, verbatim(message)))

    @cached_property
    def said_by_turns(self) -> frozenset[int]:
        """What was said up to each of the assistant's turns."""
        return frozenset(self.said[i] for i in self.turns)

    @cached_property
    def trails(self) -> list[Trail]:
        """Entry i leads up to message i."""
        return list(accumulate(self.messages, Trail.after, initial=Trail()))

    def turn(self, at: int) -> Turn:
        """An assistant's turn, with the ids that its results carry."""
        results = takewhile(lambda message: message.role != "assistant", islice(self.messages, at + 1, None))
        return turn_of(self.messages[at], (message.tool_call_id or "" for message in results))


@dataclass(eq=False, slots=True, kw_only=True)
class Reply:
    """A logged reply: its turn, the trail of its request and of itself, and what continued it."""

    turn: Turn
    trail: Trail
    session: str | None
    n_children: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """An assistant's turn of a history, which may repeat a reply."""

    turn: Turn
    before: Trail
    session: str | None
    is_last: bool
    """Whether no turn follows it in the history."""
    own_ids: frozenset[str] = frozenset()
    """Ids that one open conversation alone holds."""
    proofs: frozenset[str] = frozenset()
    """Ids that one reply alone holds, or several that say the same, and that do not just count."""
    is_own_session: bool = False
    """Whether one open conversation alone holds the session's id."""
    are_own_words: bool = False
    """Whether one open conversation alone holds the turn's text, or its calls if it has no text."""
    is_own_question: bool = False
    """Whether one open conversation alone begins with the first user message."""


def turn_of(message: Message, further_ids: Iterable[str] = ()) -> Turn:
    """What identifies an assistant's message."""
    calls, text = calls_of(message, ""), _without_calls(message_text(message.content))
    text = " ".join(text.rpartition("</think>")[2].split())
    if text.startswith("<think>") or (text.isascii() and not any(map(str.isalnum, text))):
        text = ""  # cut while thinking, or a placeholder such as "."
    ids = frozenset(filter(None, (*(call.id for call in message.tool_calls or []), *further_ids)))
    named = ((call.name.rpartition(".")[2], _canonical(call.arguments)) for call in calls if call.name)
    return Turn(text, tuple(named), ids)


class Evidence:
    """What speaks for a claim repeating a reply."""

    def __init__(self, claim: Claim, reply: Reply) -> None:
        self._claim = claim
        ids = claim.turn.ids & reply.turn.ids
        self.is_proof = not ids.isdisjoint(claim.proofs)
        self.has_own_id = not ids.isdisjoint(claim.own_ids)
        self.n_ids = len(ids)
        self.has_other_ids = bool(claim.turn.ids and reply.turn.ids and not ids)
        self.text = _texts(claim.turn.text, reply.turn.text)
        self.calls = _calls(claim.turn, reply.turn)
        self.is_quote = claim.are_own_words and claim.turn[:2] == reply.turn[:2]
        n_missing = reply.trail.n_turns - 1 - claim.before.n_turns
        self.is_level = not n_missing
        self.is_longer = n_missing < 0
        self.is_shorter = n_missing > 0 and claim.is_last
        """Whether the client removed turns."""
        self.users = _users(claim.before.users, reply.trail.users, is_shorter=self.is_shorter)
        self.same_question = claim.before.users[:1] == reply.trail.users[:1]
        self.in_place = self.is_level and self.users is Agreement.SAME
        """Whether as many turns and the same user messages precede both."""
        self.same_session = claim.session is not None and claim.session == reply.session
        self.is_own_session = self.same_session and claim.is_own_session
        self.is_open = not reply.n_children
        """Whether nothing has continued the reply yet."""
        self.kind = self._kind()
        """None if nothing speaks for it, or the two contradict each other."""

    @property
    def rank(self) -> tuple[int, ...]:
        """The strongest facts first; the greatest counts."""
        likeness = (self.users, self.text + self.calls, self.text, self.in_place, self.n_ids)
        shows_itself = self.kind not in (Joined.ORDER, Joined.SESSION)
        return (self.is_proof, shows_itself, *likeness, self.same_session, self.is_open)

    def _kind(self) -> Joined | None:
        if self.is_proof:
            return Joined.IDS
        if self._may_be_summary():
            return Joined.SESSION
        if self._is_contradiction():
            return None
        is_same, is_like = (max(self.text, self.calls) >= least for least in (Agreement.SAME, Agreement.PART))
        # An id that other conversations hold too is no evidence alone.
        is_theirs = self.has_own_id and (self.in_place or (is_like and self.is_open))
        if self.n_ids and (is_same or is_theirs or (self.in_place and is_like and self.is_open)):
            return Joined.IDS
        if self.text is Agreement.SAME or (self.text is Agreement.PART and self.in_place):
            return Joined.TEXT
        if self.calls is Agreement.SAME:
            return Joined.CALLS
        is_next = self.in_place and self.is_open and not self.has_other_ids
        is_blank = not any(self._claim.turn[:2])
        if is_next and (is_like or is_blank) and (self._claim.is_own_question or self.is_own_session):
            return Joined.ORDER
        return Joined.SESSION if self.is_own_session and self.is_level and self.users >= Agreement.PART else None

    def _may_be_summary(self) -> bool:
        calls_nothing = not (self._claim.turn.calls or self._claim.turn.ids)
        return self.is_own_session and self.is_shorter and calls_nothing and self.users >= Agreement.PART

    def _is_contradiction(self) -> bool:
        is_known = self.has_own_id or self.is_quote
        if self.users is Agreement.DIFFERENT:
            # A summary, a question in other words, cleared observations: the turn has to agree, and be awaited.
            is_told = self.is_own_session or (self.is_shorter and is_known) or (self.same_question and self.is_quote)
            if not (is_told and self.is_open) or Agreement.SAME not in (self.text, self.calls):
                return True
        if self.is_longer and not is_known:
            return True
        if self.text is Agreement.DIFFERENT and not (self.n_ids and self.calls >= Agreement.PART):
            return True
        return self.calls is Agreement.DIFFERENT and not (self.n_ids and self.text is Agreement.SAME)


def _texts(one: str, other: str) -> Agreement:
    if not one or not other:
        return Agreement.SILENT
    if one == other:
        return Agreement.SAME
    return Agreement.PART if one in other or other in one else Agreement.DIFFERENT


def _calls(claimed: Turn, replied: Turn) -> Agreement:
    one, other = claimed.calls, replied.calls
    if one and not other and all(name in replied.text for name, _ in one):
        return Agreement.PART  # spelled as we do not know it
    if not one or not other:
        return Agreement.SILENT
    if one == other or [*map(_words, one)] == [*map(_words, other)]:
        return Agreement.SAME
    few, many = sorted((Counter(name for name, _ in calls) for calls in (one, other)), key=Counter.total)
    return Agreement.PART if few <= many else Agreement.DIFFERENT


def _words(call: tuple[str, str]) -> list[str]:
    """Name and words of a call, which a repair of quotes and braces keeps."""
    return [call[0], *sorted(_WORD.findall(call[1].lower()))]


def _users(one: Sequence[str], other: Sequence[str], *, is_shorter: bool) -> Agreement:
    """Of user messages; what a client removed, or added text to, is no contradiction, nor is a summary before them."""
    if not one or not other:
        return Agreement.SILENT
    if one == other:
        return Agreement.SAME
    few, many = sorted((one, other), key=len)
    rest = iter(many)
    is_part = all(any(_is_one_message(text, candidate) for candidate in rest) for text in few)
    return Agreement.PART if is_part or (is_shorter and one[-1] == other[-1]) else Agreement.DIFFERENT


def _is_one_message(one: str, other: str) -> bool:
    short, long = sorted((one, other), key=len)
    return one == other or (len(short) >= _LEAST and (long.startswith(short) or long.endswith(short)))


def _without_calls(text: str) -> str:
    kept, end = [], 0
    for start, stop in call_extents(text) if "<" in text or "[" in text else ():
        kept.append(text[end:start])
        end = stop
    return " ".join((*kept, text[end:]))


def _canonical(arguments: object) -> str:
    """Arguments as text that does not depend on spacing: clients parse and print them again."""
    try:
        value = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
        return json.dumps({} if value is None else value, sort_keys=True, ensure_ascii=False)
    except (ValueError, RecursionError):
        return str(arguments).strip()


def verbatim(message: Message) -> tuple[object, ...]:
    """What identifies a message word for word, but for thinking in a field of its own."""
    calls = [(call.id, call.function) for call in message.tool_calls or []]
    if not calls and message.function_call is not None:  # some servers give the one call in both fields
        calls = [(None, message.function_call)]
    spelled = [(id, f.name, str(f.arguments)) for id, f in calls if f is not None]
    return (message.role, message_text(message.content), message.tool_call_id, *spelled)

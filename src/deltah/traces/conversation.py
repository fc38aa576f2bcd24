"""A conversation as a log holds it, and the trajectory that it becomes.

Importers give messages with their packed tokens, and facts; `deltah.traces.joining` joins API calls and chunks.
Sampled tokens exist only inside assistant messages; everything else becomes a segment without tokens (start == stop)
that carries its text.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict, defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from deltah.core.types import (
    CallStatus,
    Estimator,
    Scalar,
    Segment,
    SegmentKind,
    SpanQuality,
    StopReason,
    ToolCall,
    Trajectory,
)
from deltah.errors import ConfigError, DataError, DeltahError, VocabularySizeError
from deltah.traces.borders import Parsed, calls_of, name_in, spans_of, tool_part
from deltah.traces.dialects import RESULT_BLOCK
from deltah.traces.files import Position
from deltah.traces.logprobs import NO_TOKENS, PackedTokens, concatenate, measure
from deltah.traces.openai_schema import RESULT_ROLES, ChatLine, FunctionCall, Message, Response, as_text
from deltah.traces.openai_schema import message_text as message_text
from deltah.traces.parts import result_text
from deltah.traces.vocabularies import vocab_size_of

TOKENS_WITHOUT_LOGPROBS: Final = "tokens_without_logprobs"
"""Metadata key: drawn tokens of a trajectory that its logprobs do not list."""
WITHOUT_ALTERNATIVES: Final = "logprobs_without_alternatives"
"""Metadata key: the request option that would add them, where log-probabilities come without."""
UNREAD_FIELDS: Final = "unread_logprobs_fields"
"""Metadata key: names of fields of blocks of log-probabilities that are not known."""
UNCLAIMED: Final = "results_without_call"
"""Metadata key: results, or runs of tools, that no call of a trajectory accounts for."""
UNREAD_PARTS: Final = "unread_tool_parts"
"""Metadata key: types of parts of messages that look like calls or results and are not read as such."""
# Of a tool's name, also its counter: `functions.search:0`, `mcp__web__search`.
_NAME_SPACE: Final = re.compile(r".*(?:[./]|__)|:\d+\Z")
COST: Final = "cost"
"""Metadata key: what the requests of a trajectory cost, in the currency of the log."""


@dataclass(frozen=True, slots=True)
class LoggedMessage:
    """One message; sampled tokens only if it is the assistant's and the log has them."""

    message: Message
    tokens: PackedTokens = NO_TOKENS
    context: bool = False
    """Whether it belongs to another trajectory and is only repeated here: then its calls are not counted again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a log says of a conversation beside its messages; None where it does not."""

    id: str | None = None
    group_id: str | None = None
    session: str | None = None
    continues: str | None = None
    """Id of what a request goes on with and does not repeat: a reply, or a conversation that the server keeps."""
    continued_as: tuple[str, ...] = ()
    """Ids by which later requests name the reply in this way."""
    vocab_size: int | None = None
    model: str | None = None
    sampling_temperature: float | None = None
    top_logprobs: int | None = None
    """K that the request asked for."""
    logprobs_mode: str | None = None
    question: str | None = None
    prediction: str | None = None
    golden_answers: tuple[str, ...] = ()
    outcome: float | None = None
    finish_reason: str | None = None
    started_at: float = math.nan
    """Seconds since 1970; NaN where the log does not say."""
    ended_at: float = math.nan
    is_completion: bool = False
    """Whether the log-probabilities are those of text completions, which are asked for otherwise."""
    n_without_logprobs: int = 0
    """Tokens that were drawn, by the server's count, beyond those its logprobs list."""
    metadata: dict[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order."""

    messages: list[LoggedMessage]
    facts: Facts
    where: Position
    """Of its first record."""


@dataclass(frozen=True, slots=True)
class ApiCall:
    """One API call of a conversation."""

    history: list[LoggedMessage]
    reply: LoggedMessage
    facts: Facts
    where: Position
    after: tuple[LoggedMessage, ...] = ()
    """What the response holds behind its first message: results of tools that the server ran, and what followed."""

    def alone(self) -> Conversation:
        """The call as a conversation of its own: its whole history and its reply."""
        return Conversation([*self.history, self.reply, *self.after], self.facts, self.where)


@dataclass(frozen=True, slots=True)
class LoggedChunk:
    """One chunk of a streamed response."""

    chunk: Response
    envelope: ChatLine
    """What its line says beside it."""


def to_trajectory(conversation: Conversation, vocab_size: int | None = None) -> Trajectory:
    """Trajectory of one conversation; a `vocab_size` that is too small is a `ConfigError`, wrong for all of the log."""
    facts = conversation.facts
    built = SegmentBuilder({one.message.tool_call_id for one in conversation.messages})
    for i, one in enumerate(conversation.messages, start=1):
        if one.context:
            built.add_context(one.message)
        else:
            following = conversation.messages[i : i + 1]
            built.add(one.message, one.tokens, answered=any(n.message.role in RESULT_ROLES for n in following))
    tokens = concatenate([one.tokens for one in conversation.messages if not one.context])
    stated = facts.vocab_size or vocab_size
    size, origin = vocab_size_of(facts.model) if not stated else (stated, None)
    try:
        measured = measure(tokens, size, requested=facts.top_logprobs)
    except VocabularySizeError as error:
        raise _wrong_size(error, facts, vocab_size) from error
    metadata = dict(facts.metadata)
    if origin is not None and measured.estimator is Estimator.TOP_K:
        metadata |= {"vocab_size": size, "vocab_size_from": origin}
    metadata |= _losses(conversation, built, measured=measured.entropy is not None)
    last = conversation.messages[-1].message
    stop_reason = _stop_reason(built, last, facts.finish_reason)
    asked = (message_text(one.message.content) for one in conversation.messages if one.message.role == "user")
    answered, answer = stop_reason is StopReason.ANSWERED, message_text(last.content)
    return Trajectory(
        id=conversation.where.default_id if facts.id is None else facts.id,
        segments=tuple(built.segments),
        calls=tuple(built.calls),
        entropy=measured.entropy,
        entropy_lower=measured.lower,
        entropy_upper=measured.upper,
        estimator=measured.estimator,
        temperature=_temperature(facts),
        logprobs=tokens.logprobs if np.isfinite(tokens.logprobs).any() else None,
        token_texts=tuple(tokens.texts) if len(tokens) else None,
        group_id=facts.group_id,
        question=next(asked, None) if facts.question is None else facts.question,
        prediction=facts.prediction if facts.prediction is not None or not answered else answer.strip(),
        golden_answers=facts.golden_answers,
        outcome=facts.outcome,
        stop_reason=stop_reason,
        spans=SpanQuality.EXACT if built.exact else SpanQuality.APPROXIMATE,
        model=facts.model,
        metadata=metadata,
    )


def _losses(conversation: Conversation, built: SegmentBuilder, *, measured: bool) -> dict[str, Scalar]:
    """What the log has and the trajectory lacks, by metadata key."""
    own = [one.tokens for one in conversation.messages if not one.context]
    unread = sorted({name for tokens in own for name in tokens.unread})
    without = not measured and any(np.isfinite(tokens.logprobs).any() for tokens in own)
    option = "logprobs=5" if conversation.facts.is_completion else "top_logprobs=20"
    found: dict[str, Scalar] = {
        TOKENS_WITHOUT_LOGPROBS: conversation.facts.n_without_logprobs,
        WITHOUT_ALTERNATIVES: option if without else "",
        UNREAD_FIELDS: ", ".join(unread),
        UNCLAIMED: built.n_unclaimed,
        UNREAD_PARTS: ", ".join(sorted(built.unread_parts)),
    }
    return {key: value for key, value in found.items() if value}


def _wrong_size(error: VocabularySizeError, facts: Facts, given: int | None) -> DeltahError:
    """The error of a size that is too small, by who stated it."""
    if facts.vocab_size:
        return DataError(f"field vocab_size: {error}")
    if given:
        return ConfigError(f"--vocab-size: {error}")
    return DataError(str(error) if facts.model is None else f"model {facts.model!r}: {error}")


def _temperature(facts: Facts) -> float | None:
    """Temperature of the distribution that the log-probabilities describe."""
    sampling, mode = facts.sampling_temperature, facts.logprobs_mode or ""
    if mode.startswith("raw") or (mode.startswith("processed") and sampling == 0.0):
        return 1.0  # a server that takes the most likely token divides by no temperature
    return sampling if mode.startswith("processed") or sampling == 1.0 else None


def _stop_reason(built: SegmentBuilder, last: Message, finish_reason: str | None) -> StopReason:
    if last.role == "assistant" and finish_reason == "length":
        return StopReason.LENGTH
    if built.open_calls:
        return StopReason.UNANSWERED_CALL
    return StopReason.ANSWERED if last.role == "assistant" else StopReason.UNKNOWN


class SegmentBuilder:
    """Segments and calls of one conversation, grown message by message."""

    def __init__(self, answered: Set[str | None] = frozenset()) -> None:
        """`answered` are the ids that results name: a call of another id may be that of a result of another id."""
        self._answered = answered
        self.segments: list[Segment] = []
        self.calls: list[ToolCall] = []
        """In the order they were issued, with the results that came."""
        self.n_tokens = 0
        self.n_turns = 0
        self.exact = True
        """False once a border between segments could not be kept."""
        self.n_unclaimed = 0
        """Results that no call waits for."""
        self.unread_parts: set[str] = set()
        self._taken: set[str] = set()
        self._repeats: dict[str, int] = {}
        """How often an id was wanted again."""
        self.open_calls: OrderedDict[int, str | None] = OrderedDict()
        """Places of calls without a result, with the id that the server gave."""
        self._open_by_id: defaultdict[str | None, OrderedDict[int, None]] = defaultdict(OrderedDict)

    def add(self, message: Message, tokens: PackedTokens = NO_TOKENS, *, answered: bool = False) -> None:
        """Append a message, an assistant's with the tokens that the log has, and whether a result follows."""
        if isinstance(message.content, list):
            self.unread_parts |= {kind for part in message.content if (kind := tool_part(part)) is not None}
        if message.role == "assistant":
            self._add_turn(message, tokens, answered=answered)
        elif message.role in RESULT_ROLES:
            self._add_result(message)
        else:
            self._add_prompt(message)

    def _add_prompt(self, message: Message) -> None:
        """Append a message of a user; marked blocks in it are results, where calls wait for some."""
        text, position = message_text(message.content), 0
        for block in RESULT_BLOCK.finditer(text) if self.open_calls and message.role == "user" else ():
            if not self.open_calls:
                break
            if before := text[position : block.start()].strip():
                self._add_text(SegmentKind.PROMPT, self.n_turns, before)
            self._add_result(Message("tool", content=block["text"], name=name_in(block["text"])))
            position = block.end()
        if not position or text[position:].strip():
            self._add_text(SegmentKind.PROMPT, self.n_turns, text[position:].strip() if position else text)

    def add_context(self, message: Message) -> None:
        """Append a message of another trajectory: text before this one's first turn, no call of its own."""
        calls = [f"{call.name or ''}({_argument_text(call.arguments)})" for call in calls_of(message, "")]
        text = "\n".join(filter(None, (message_text(message.content), *calls)))
        self._add_text(SegmentKind.PROMPT, self.n_turns, text)

    def _add_turn(self, message: Message, tokens: PackedTokens, *, answered: bool) -> None:
        turn, sampled = self.n_turns, "".join(tokens.texts)
        calls = calls_of(message, sampled, answered=answered)
        content = message_text(message.content) or message.refusal or ""
        thought = message.reasoning_content or message_text(message.reasoning)
        parsed = Parsed(calls, thought, content)
        found = spans_of(message, tokens, parsed)
        if not sampled or (thought and thought.strip() not in sampled):
            self._add_text(SegmentKind.REASONING, turn, thought)
            self.exact &= not (sampled and thought)
        if not sampled:
            self._add_text(SegmentKind.REASONING, turn, content)
        # A server that loses characters shows other tokens than it sampled.
        self.exact &= found.exact and (not sampled or content.strip() in sampled)
        for kind, start, stop in found.spans:
            self.segments.append(Segment(kind=kind, start=self.n_tokens + start, stop=self.n_tokens + stop, turn=turn))
        self.n_tokens += len(tokens)
        if calls and not any(span.kind is SegmentKind.CALL for span in found.spans):
            # The logprobs stop at the content, or spell the call in a dialect we do not know.
            self.exact &= not sampled or parsed.ends(sampled)
            for call in calls:
                self._add_text(SegmentKind.CALL, turn, f"{call.name or ''}({_argument_text(call.arguments)})")
        self._register(message, calls, turn)
        self.n_turns += 1

    def _register(self, message: Message, calls: Sequence[FunctionCall], turn: int) -> None:
        for i, call in enumerate(calls):
            server_id = message.tool_calls[i].id if message.tool_calls else None
            identifier = self._unique(server_id or f"call-{len(self.calls)}")
            self.open_calls[len(self.calls)] = server_id
            self._open_by_id[server_id][len(self.calls)] = None
            name, arguments = call.name or "", _argument_text(call.arguments)
            self.calls.append(
                ToolCall(id=identifier, name=name, arguments=arguments, turn=turn, status=CallStatus.UNANSWERED)
            )

    def _unique(self, wanted: str) -> str:
        """Servers that number calls within a turn repeat their ids; later ones get a suffix."""
        candidate = wanted
        while candidate in self._taken:
            self._repeats[wanted] = n = self._repeats.get(wanted, 1) + 1
            candidate = f"{wanted}#{n}"
        self._taken.add(candidate)
        return candidate

    def _add_result(self, message: Message) -> None:
        text = message.content if isinstance(message.content, str) else result_text(message.content)
        at, turn = self._answered_by(message), max(self.n_turns - 1, 0)
        if at is not None:
            del self._open_by_id[self.open_calls.pop(at)][at]
            failed = message.is_error  # as the message states it
            if not isinstance(failed, bool):
                failed = {"error": True, "success": False}.get(str(message.status))
            status = CallStatus.of(text, failed)
            answered = replace(self.calls[at], result=text, status=status, duration_s=message.duration_s)
            self.calls[at], turn = answered, answered.turn
        self.n_unclaimed += at is None
        self._add_text(SegmentKind.RESULT, turn, text)

    def _answered_by(self, message: Message) -> int | None:
        """Place of the call that a result belongs to: by id the latest, then by the tool's name the oldest open one.

        Without a known id and name it is the oldest open call; if the result has an id, the oldest without one, or of
        the last turn with an id that no result names.
        """
        id = message.tool_call_id
        if id is not None and (latest := next(reversed(self._open_by_id[id]), None)) is not None:
            return latest
        found = next((at for name in (message.name, id) if (at := self._of_tool(name)) is not None), None)
        if found is not None or id is None:
            return next(iter(self.open_calls), None) if found is None else found
        if (found := next(iter(self._open_by_id[None]), None)) is not None or not self._answered:
            return found
        foreign = (at for at, given in self.open_calls.items() if given not in self._answered)
        return next((at for at in foreign if self.calls[at].turn == self.n_turns - 1), None)

    def _of_tool(self, name: Any) -> int | None:
        """Place of the oldest open call of a tool, by its whole name or else by that without name spaces."""
        named = {at: self.calls[at].name for at in self.open_calls} if name else {}
        found = [at for at, called in named.items() if called == name]
        bare = _NAME_SPACE.sub("", str(name))
        return next(iter(found or (at for at in named if _NAME_SPACE.sub("", named[at]) == bare)), None)

    def _add_text(self, kind: SegmentKind, turn: int, text: str) -> None:
        if not text and kind in (SegmentKind.REASONING, SegmentKind.CALL):
            return
        # A late result may follow a user message; turns never fall.
        turn = max(turn, self.segments[-1].turn) if self.segments else turn
        self.segments.append(Segment(kind=kind, start=self.n_tokens, stop=self.n_tokens, turn=turn, text=text))


def _argument_text(arguments: Any) -> str:
    return as_text({} if arguments is None else arguments)

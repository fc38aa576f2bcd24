"""The three contexts of a call, and the logged segment that follows it.

All three share the state in which the policy made the call, its thoughts in that turn included:

* real: the state, the call, its result.
* placebo: the same with the result's text replaced by the donor's; siblings of the round stay.
* none: the call was not made. If it was the turn's only one, its text is cut out of the turn and the turn goes on where
  the call began, so the continuation stands in the open message. If it has siblings, its text and its result are cut
  out and the others stay; the continuation starts the next message. The text before the call may announce it ("let me
  check"), which weighs on what follows: that is why usefulness is judged against the placebo.

Where the logged token ids are the tokenizer's own, contexts are spliced from them and every other token stays as it
was sampled. Elsewhere chat messages are rebuilt and rendered again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from deltah.core.types import Segment, SegmentKind, Trajectory
from deltah.probe.control_result import Donor
from deltah.probe.splice import Span, body_spans, replaced, without_result
from deltah.probe.types import (
    ChatContext,
    Context,
    Continuation,
    Query,
    TextContinuation,
    TokenContext,
    TokenContinuation,
    TokenView,
)
from deltah.traces.messages import Message, PlacedMessage, placed_messages

PARAGRAPH = "\n\n"
"""Stands between two texts of one message that would run into one word."""


class Form(StrEnum):
    """How contexts were made."""

    TOKENS = "tokens"
    """Spliced from logged token ids."""
    MESSAGES = "messages"
    """Rendered from rebuilt chat messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """The same state under three results."""

    real: Context
    placebo: Context
    none: Context | None
    """None where the call's own text cannot be told from its siblings'."""
    segment: Continuation | None
    """r_k: reasoning of the next assistant turn; None if it has none."""
    form: Form


class Splicer:
    """Which rounds of a set of trajectories can be spliced at the level of tokens; remembers what it found."""

    def __init__(self, view: TokenView | None) -> None:
        """Start with a tokenizer's view, or without one: then no round can be spliced."""
        self.view = view
        self._fits: dict[int, bool] = {}
        self._prompts: dict[int, list[int]] = {}
        self._kept: list[Trajectory] = []  # an id() is unique only while its object lives

    def spans(self, trajectory: Trajectory, turn: int) -> dict[int, Span] | None:
        """Bodies of a round's results, by call; None if the round cannot be spliced."""
        return body_spans(trajectory, turn) if self._fit(trajectory) else None

    def usable(self, donor: Donor) -> bool:
        """Whether the tokens of a donor's result are known."""
        spans = self.spans(donor.trajectory, donor.trajectory.calls[donor.call].turn)
        return spans is not None and donor.call in spans

    def prompt(self, trajectory: Trajectory) -> list[int]:
        """Ids before the logged tokens: those of the prompt's messages where the log holds only their text."""
        key = id(trajectory)
        if key not in self._prompts:
            placed = placed_messages(trajectory)
            first = next((i for i, p in enumerate(placed) if p.message["role"] == "assistant"), len(placed))
            logged = any(s.kind is SegmentKind.PROMPT and s.n_tokens for s in trajectory.segments)
            messages = [p.message for p in placed[:first]]
            self._prompts[key] = [] if logged or self.view is None else self.view.prompt(messages)
            self._kept.append(trajectory)
        return self._prompts[key]

    def _fit(self, trajectory: Trajectory) -> bool:
        key = id(trajectory)
        if key not in self._fits:
            self._fits[key] = self.view is not None and _has_all_tokens(trajectory) and _same(trajectory, self.view)
            self._kept.append(trajectory)
        return self._fits[key]


def contexts_of(trajectory: Trajectory, call: int, donor: Donor, splicer: Splicer) -> Contexts:
    """Contexts of one answered call: spliced where both rounds can be, else from messages.

    Raises:
        QueryError: if the tokenizer's template cannot render the prompt.
    """
    turn = trajectory.calls[call].turn
    spans = splicer.spans(trajectory, turn)
    donors = splicer.spans(donor.trajectory, donor.trajectory.calls[donor.call].turn)
    if spans is not None and call in spans and donors is not None and donor.call in donors:
        return _token_contexts(trajectory, call, spans, _body(donor, donors), splicer.prompt(trajectory))
    return _chat_contexts(trajectory, call, donor.result)


def joined(context: Context, continuation: Continuation) -> Query:
    """Query of a continuation in a context; a word that goes on in an open message starts a paragraph there."""
    if isinstance(context, ChatContext) and isinstance(continuation, TextContinuation):
        before, after = context.open_text[-1:], continuation.text[:1]
        if before and not before.isspace() and after.isalnum():
            context = replace(context, open_text=context.open_text + PARAGRAPH)
    return Query(context=context, continuation=continuation)


def _has_all_tokens(trajectory: Trajectory) -> bool:
    """Whether every segment lies in tokens, or all but the prompt's messages do."""
    if trajectory.token_ids is None or trajectory.token_texts is None:
        return False
    bare = [s for s in trajectory.segments if not s.n_tokens]
    prompts = [s for s in trajectory.segments if s.kind is SegmentKind.PROMPT]
    return not bare or (bare == prompts and all(s.turn == 0 for s in prompts))


def _same(trajectory: Trajectory, view: TokenView) -> bool:
    """Whether the tokenizer reads the logged ids as the log does."""
    ids = [] if trajectory.token_ids is None else trajectory.token_ids.tolist()
    return tuple(view.texts(ids)) == trajectory.token_texts


def _body(donor: Donor, spans: dict[int, Span]) -> list[int]:
    start, stop = spans[donor.call]
    ids = donor.trajectory.token_ids
    return [] if ids is None else ids[start:stop].tolist()


def _token_contexts(
    trajectory: Trajectory, call: int, spans: dict[int, Span], body: Sequence[int], prompt: Sequence[int]
) -> Contexts:
    turn = trajectory.calls[call].turn
    segments = trajectory.segments
    following = [s for s in segments if s.kind.sampled and s.turn > turn]
    stop = following[0].start if following else len(trajectory)
    ids = [] if trajectory.token_ids is None else trajectory.token_ids.tolist()
    none = _tokens_without(trajectory, call, spans, stop)
    return Contexts(
        real=TokenContext(ids=(*prompt, *ids[:stop])),
        placebo=TokenContext(ids=(*prompt, *replaced(trajectory, spans, call, body, stop))),
        none=None if none is None else TokenContext(ids=(*prompt, *none)),
        segment=_token_segment(ids, following),
        form=Form.TOKENS,
    )


def _tokens_without(trajectory: Trajectory, call: int, spans: dict[int, Span], stop: int) -> list[int] | None:
    """Token ids of the state without the call; None where the call has no span of its own."""
    turn = trajectory.calls[call].turn
    own = [s for s in trajectory.segments if s.kind.sampled and s.turn == turn]
    siblings = [i for i, c in enumerate(trajectory.calls) if c.turn == turn]
    spelled = [i for i, s in enumerate(own) if s.kind is SegmentKind.CALL]
    if len(spelled) != len(siblings):
        return None
    at = spelled[siblings.index(call)]
    if len(siblings) > 1:
        if len(spans) < len(siblings):
            return None
        kept = without_result(trajectory, spans, call, stop)
        return [*kept[: own[0].start], *_ids(trajectory, _cut_sibling(own, at)), *kept[own[-1].stop :]]
    ids = trajectory.token_ids
    before = [] if ids is None else ids[: own[at].start].tolist()
    return [*before, *_ids(trajectory, _without_end(own[at + 1 :]))]


def _cut_sibling(own: Sequence[Segment], at: int) -> list[Segment]:
    """Segments of a turn without one of several calls and the delimiter between it and its neighbour."""
    drop = {at}
    if at >= 2 and own[at - 1].kind is SegmentKind.CONTROL and own[at - 2].kind is SegmentKind.CALL:
        drop.add(at - 1)
    elif at + 2 < len(own) and own[at + 1].kind is SegmentKind.CONTROL and own[at + 2].kind is SegmentKind.CALL:
        drop.add(at + 1)
    return [s for i, s in enumerate(own) if i not in drop]


def _without_end(segments: Sequence[Segment]) -> Sequence[Segment]:
    """Segments up to the last reasoning: the turn stays open."""
    last = max((i for i, s in enumerate(segments) if s.kind is SegmentKind.REASONING), default=-1)
    return segments[: last + 1]


def _ids(trajectory: Trajectory, segments: Sequence[Segment]) -> list[int]:
    ids = trajectory.token_ids
    return [] if ids is None else [i for s in segments for i in ids[s.start : s.stop].tolist()]


def _token_segment(ids: Sequence[int], following: Sequence[Segment]) -> TokenContinuation | None:
    """Tokens of the next turn up to its last reasoning, with the reasoning in focus."""
    if not following:
        return None
    turn = [s for s in following if s.turn == following[0].turn]
    spoken = _without_end(turn)
    if not spoken:
        return None
    focus = tuple(s.kind is SegmentKind.REASONING for s in spoken for _ in range(s.n_tokens))
    return TokenContinuation(ids=tuple(ids[spoken[0].start : spoken[-1].stop]), focus=focus)


def _chat_contexts(trajectory: Trajectory, call: int, body: str) -> Contexts:
    turn = trajectory.calls[call].turn
    placed = placed_messages(trajectory)
    stop = next((i for i, p in enumerate(placed) if _speaks(p) and p.turn > turn), len(placed))
    state = placed[:stop]
    swapped = [{**p.message, "content": body} if p.call == call else p.message for p in state]
    return Contexts(
        real=ChatContext(messages=tuple(p.message for p in state)),
        placebo=ChatContext(messages=tuple(swapped)),
        none=_chat_without(trajectory, call, state),
        segment=_text_segment(trajectory, turn),
        form=Form.MESSAGES,
    )


def _speaks(placed: PlacedMessage) -> bool:
    return bool(placed.message["role"] == "assistant")


def _chat_without(trajectory: Trajectory, call: int, state: Sequence[PlacedMessage]) -> ChatContext:
    target = trajectory.calls[call]
    at = next(i for i, p in enumerate(state) if _speaks(p) and p.turn == target.turn)
    message = state[at].message
    others = [entry for entry in message.get("tool_calls", ()) if entry["id"] != target.id]
    before = tuple(p.message for p in state[:at])
    if others:
        rest = (p.message for p in state[at + 1 :] if p.call != call)
        return ChatContext(messages=(*before, {**message, "tool_calls": others}, *rest))
    return ChatContext(messages=before, open_text=_open_text(trajectory, target.turn, message))


def _open_text(trajectory: Trajectory, turn: int, message: Message) -> str:
    """What the policy wrote in a turn before its call, think tags included where the log has them as tokens."""
    own = [s for s in trajectory.segments if s.kind.sampled and s.turn == turn]
    if not any(s.n_tokens for s in own):
        return str(message["content"])
    first_call = next((i for i, s in enumerate(own) if s.kind is SegmentKind.CALL), len(own))
    return "".join(trajectory.segment_text(s) or "" for s in own[:first_call])


def _text_segment(trajectory: Trajectory, turn: int) -> TextContinuation | None:
    """Text of the next turn before its call."""
    following = [s for s in trajectory.segments if s.kind.sampled and s.turn > turn]
    own = [s for s in following if s.turn == following[0].turn] if following else []
    first_call = next((i for i, s in enumerate(own) if s.kind is SegmentKind.CALL), len(own))
    spoken = [trajectory.segment_text(s) or "" for s in _without_end(own[:first_call])]
    text = ("" if any(s.n_tokens for s in own) else PARAGRAPH).join(spoken)
    return TextContinuation(text=text) if text.strip() else None

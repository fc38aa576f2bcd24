"""The three contexts of a call, which share the state in which the policy made it, and the segment that follows it.

* real: the state, the call, its result.
* control: the same with the text of an unrelated result; siblings of the round stay.
* none: the call was not made. The text of the turn's only call is cut out and the continuation stands in the open
  message. Of several calls, one and its result are cut out and the continuation starts the next message.

Where the logged token ids are the tokenizer's own, contexts are spliced from them and every other token stays as it
was sampled; elsewhere chat messages are rebuilt and rendered again. A result segment in tokens is
`P b_1 M b_2 M ... b_n S`: bodies b_i, which spell the results, between tokens of the template, of which M closes one
result and opens the next. Bodies are found by their visible characters, because templates strip and indent results; a
token that holds a body's first or last character is part of the body.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile
from typing import TypeAlias

from deltah.core.types import Segment, SegmentKind, ToolCall, Trajectory
from deltah.probe.queries import (
    ChatContext,
    Context,
    Continuation,
    Query,
    TextContinuation,
    TokenContext,
    TokenContinuation,
    TokenView,
)
from deltah.traces.messages import PlacedMessage, placed_messages

PARAGRAPH = "\n\n"
"""Stands between two texts of one message that would run into one word."""
Span: TypeAlias = tuple[int, int]
"""Token indices [start, stop)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """One state under three results."""

    real: Context
    control: Context
    none: Context | None
    """None where the call's own text cannot be told from its siblings'."""
    segment: Continuation | None
    """r_k: reasoning of the next assistant turn; None if it has none."""

    @property
    def form(self) -> str:
        """How they were made: spliced from logged "tokens", or rendered from "messages"."""
        return "tokens" if isinstance(self.real, TokenContext) else "messages"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedCall:
    """A call of a trajectory: one that is probed, or one whose result is the control."""

    trajectory: Trajectory
    index: int

    @property
    def call(self) -> ToolCall:
        """The call itself."""
        return self.trajectory.calls[self.index]


class Splicer:
    """Finds which rounds of a set of trajectories can be spliced at the level of tokens, and remembers it."""

    def __init__(self, view: TokenView | None) -> None:
        """Without a tokenizer's view no round can be spliced."""
        self.view = view
        # By id(), which is unique as long as the caller keeps the trajectories.
        self._fits: dict[int, bool] = {}
        self._prompts: dict[int, list[int]] = {}

    def spans(self, target: LoggedCall) -> dict[int, Span] | None:
        """Bodies of the results of a call's round, by call; None if its own cannot be spliced."""
        trajectory = target.trajectory
        if id(trajectory) not in self._fits:
            self._fits[id(trajectory)] = (
                self.view is not None
                and _has_all_tokens(trajectory)
                # The tokenizer reads the logged ids as the log does.
                and tuple(self.view.texts(_token_ids(trajectory))) == trajectory.token_texts
            )
        spans = body_spans(trajectory, target.call.turn) if self._fits[id(trajectory)] else None
        return spans if spans and target.index in spans else None

    def body(self, control: LoggedCall) -> list[int] | None:
        """Token ids of a control result; None if they are not known."""
        spans = self.spans(control)
        return None if spans is None else _token_ids(control.trajectory)[slice(*spans[control.index])]

    def prompt(self, trajectory: Trajectory) -> list[int]:
        """Ids before the logged tokens: those of the prompt's messages where the log holds only their text."""
        if id(trajectory) not in self._prompts:
            ids = list[int]()
            if self.view and not any(s.kind is SegmentKind.PROMPT and s.n_tokens for s in trajectory.segments):
                before = takewhile(lambda placed: not _speaks(placed), placed_messages(trajectory))
                ids = self.view.prompt([placed.message for placed in before])
            self._prompts[id(trajectory)] = ids
        return self._prompts[id(trajectory)]


def contexts_of(target: LoggedCall, control: LoggedCall, splicer: Splicer) -> Contexts:
    """Contexts of an answered call: spliced where both rounds can be, else from messages."""
    spans, body = splicer.spans(target), splicer.body(control)
    if spans is None or body is None:
        return _chat_contexts(target.trajectory, target.index, control.call.result or "")
    return _token_contexts(target.trajectory, target.index, spans, body, splicer.prompt(target.trajectory))


def joined(context: Context, continuation: Continuation) -> Query:
    """Query of a continuation in a context; a word that goes on in an open message starts a paragraph there."""
    if isinstance(context, ChatContext) and isinstance(continuation, TextContinuation):
        before, after = context.open_text[-1:], continuation.text[:1]
        if before and not before.isspace() and after.isalnum():
            context = replace(context, open_text=context.open_text + PARAGRAPH)
    return Query(context=context, continuation=continuation)


def body_spans(trajectory: Trajectory, turn: int) -> dict[int, Span] | None:
    """Token span of each answered call's result text, by index of the call, in order of the tokens.

    None where a text is not found, two results share a token, or the results do not lie in one segment of tokens.
    """
    found = [s for s in trajectory.segments if s.kind is SegmentKind.RESULT and s.turn == turn]
    if len(found) != 1 or not found[0].n_tokens or trajectory.token_texts is None:
        return None
    segment = found[0]
    answered = [i for i, c in enumerate(trajectory.calls) if c.turn == turn and c.result is not None]
    results = [_visible(trajectory.calls[i].result or "") for i in answered]
    spans = _locate(trajectory.token_texts[segment.start : segment.stop], results)
    if spans is None:
        return None
    return {i: (segment.start + start, segment.start + stop) for i, (start, stop) in zip(answered, spans, strict=True)}


def _locate(tokens: Sequence[str], wanted: Sequence[str]) -> list[Span] | None:
    """Spans of texts without white space, one after the other, in tokens; None if the template could be meant."""
    visible = [_visible(token) for token in tokens]
    ends = list(accumulate(map(len, visible)))
    owner = [t for t, text in enumerate(visible) for _ in text]
    joined, position, spans = "".join(visible), 0, list[Span]()
    for text in wanted:
        at = joined.find(text, position) if text else -1
        if at < 0 or joined.count(text) > sum(other.count(text) for other in wanted):
            return None
        first, last = owner[at], owner[at + len(text) - 1]
        starts_inside = ends[first] - len(visible[first]) < at
        if starts_inside or ends[last] > at + len(text) or (spans and first < spans[-1][1]):
            return None
        spans.append((first, last + 1))
        position = at + len(text)
    return spans


def _visible(text: str) -> str:
    return "".join(text.split())


def _token_ids(trajectory: Trajectory) -> list[int]:
    return [] if trajectory.token_ids is None else [int(i) for i in trajectory.token_ids]


def _has_all_tokens(trajectory: Trajectory) -> bool:
    """Whether every segment lies in tokens, or all but the prompt's messages do."""
    if trajectory.token_ids is None or trajectory.token_texts is None:
        return False
    bare = [s for s in trajectory.segments if not s.n_tokens]
    prompts = [s for s in trajectory.segments if s.kind is SegmentKind.PROMPT]
    return not bare or (bare == prompts and all(s.turn == 0 for s in prompts))


def _token_contexts(
    trajectory: Trajectory, call: int, spans: dict[int, Span], body: Sequence[int], prompt: Sequence[int]
) -> Contexts:
    following = [s for s in trajectory.segments if s.kind.sampled and s.turn > trajectory.calls[call].turn]
    ids = _token_ids(trajectory)
    state = ids[: following[0].start] if following else ids
    start, stop = spans[call]
    none = _tokens_without(trajectory, call, spans, state)
    return Contexts(
        real=TokenContext(ids=(*prompt, *state)),
        control=TokenContext(ids=(*prompt, *state[:start], *body, *state[stop:])),
        none=None if none is None else TokenContext(ids=(*prompt, *none)),
        segment=_token_segment(ids, following),
    )


def _tokens_without(trajectory: Trajectory, call: int, spans: dict[int, Span], state: list[int]) -> list[int] | None:
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
        kept = _without_result(spans, call, state)
        return [*kept[: own[0].start], *_ids(state, _cut_sibling(own, at)), *kept[own[-1].stop :]]
    return [*state[: own[at].start], *_ids(state, _without_end(own[at + 1 :]))]


def _without_result(spans: dict[int, Span], call: int, state: list[int]) -> list[int]:
    """The state without one of several results of a round, its template tokens included."""
    order = list(spans)
    at = order.index(call)
    if at == 0:  # b_1 goes with the M after it, a later one with the M before it
        return [*state[: spans[call][0]], *state[spans[order[1]][0] :]]
    return [*state[: spans[order[at - 1]][1]], *state[spans[call][1] :]]


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


def _ids(ids: list[int], segments: Sequence[Segment]) -> list[int]:
    return [i for s in segments for i in ids[s.start : s.stop]]


def _token_segment(ids: Sequence[int], following: Sequence[Segment]) -> TokenContinuation | None:
    """Tokens of the next turn up to its last reasoning, with the reasoning in focus."""
    spoken = _without_end([s for s in following if s.turn == following[0].turn])
    if not spoken:
        return None
    focus = tuple(s.kind is SegmentKind.REASONING for s in spoken for _ in range(s.n_tokens))
    return TokenContinuation(ids=tuple(ids[spoken[0].start : spoken[-1].stop]), focus=focus)


def _chat_contexts(trajectory: Trajectory, call: int, body: str) -> Contexts:
    turn = trajectory.calls[call].turn
    state = list(takewhile(lambda p: not _speaks(p) or p.turn <= turn, placed_messages(trajectory)))
    swapped = [{**p.message, "content": body} if p.call == call else p.message for p in state]
    return Contexts(
        real=ChatContext(messages=tuple(p.message for p in state)),
        control=ChatContext(messages=tuple(swapped)),
        none=_chat_without(trajectory, call, state),
        segment=_text_segment(trajectory, turn),
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
    own, open_text = [s for s in trajectory.segments if s.kind.sampled and s.turn == target.turn], message["content"]
    if any(s.n_tokens for s in own):  # with the think tags
        open_text = "".join(trajectory.segment_text(s) or "" for s in _before_call(own))
    return ChatContext(messages=before, open_text=open_text)


def _before_call(turn: Sequence[Segment]) -> Sequence[Segment]:
    return turn[: next((i for i, s in enumerate(turn) if s.kind is SegmentKind.CALL), len(turn))]


def _text_segment(trajectory: Trajectory, turn: int) -> TextContinuation | None:
    """Text of the next turn before its call."""
    following = [s for s in trajectory.segments if s.kind.sampled and s.turn > turn]
    own = [s for s in following if s.turn == following[0].turn]
    spoken = [trajectory.segment_text(s) or "" for s in _without_end(_before_call(own))]
    text = ("" if any(s.n_tokens for s in own) else PARAGRAPH).join(spoken)
    return TextContinuation(text=text) if text.strip() else None

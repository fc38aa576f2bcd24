"""Where in logged tokens a round's results stand, so that one can be replaced or removed and every other token stays.

A result segment is `P b_1 M b_2 M ... b_n S`: bodies b_i, which spell the results, between tokens of the template, of
which M closes one result and opens the next. Bodies are found by their visible characters, because templates strip and
indent results; a token that holds a body's first or last character is part of the body, with the white space in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from deltah.core.types import Segment, SegmentKind, Trajectory

Span = tuple[int, int]


def result_segment(trajectory: Trajectory, turn: int) -> Segment | None:
    """The one segment of tokens that holds the results of a turn's calls; None if there are none or several."""
    found = [s for s in trajectory.segments if s.kind is SegmentKind.RESULT and s.turn == turn]
    return found[0] if len(found) == 1 and found[0].n_tokens else None


def body_spans(trajectory: Trajectory, turn: int) -> dict[int, Span] | None:
    """Token span [start, stop) of each answered call's result text, by index of the call, in order of the tokens.

    None where a text is not found, or two results share a token.
    """
    segment = result_segment(trajectory, turn)
    if segment is None or trajectory.token_texts is None:
        return None
    tokens = trajectory.token_texts[segment.start : segment.stop]
    answered = [i for i, c in enumerate(trajectory.calls) if c.turn == turn and c.result is not None]
    results = [_visible(trajectory.calls[i].result or "") for i in answered]
    found = _locate(tokens, results)
    if found is None:
        return None
    return {i: (segment.start + start, segment.start + stop) for i, (start, stop) in zip(answered, found, strict=True)}


def replaced(trajectory: Trajectory, spans: dict[int, Span], call: int, body: Sequence[int], stop: int) -> list[int]:
    """Token ids of 0..stop with one result's body replaced."""
    ids, (start, end) = _ids(trajectory, stop), spans[call]
    return [*ids[:start], *body, *ids[end:]]


def without_result(trajectory: Trajectory, spans: dict[int, Span], call: int, stop: int) -> list[int]:
    """Token ids of 0..stop without one of several results of a round, its template tokens included."""
    ids, order = _ids(trajectory, stop), list(spans)
    at = order.index(call)
    if at == 0:  # b_1 goes with the M after it, a later one with the M before it
        return [*ids[: spans[call][0]], *ids[spans[order[1]][0] :]]
    return [*ids[: spans[order[at - 1]][1]], *ids[spans[call][1] :]]


def _ids(trajectory: Trajectory, stop: int) -> list[int]:
    return [] if trajectory.token_ids is None else [int(i) for i in trajectory.token_ids[:stop]]


def _visible(text: str) -> str:
    return "".join(text.split())


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

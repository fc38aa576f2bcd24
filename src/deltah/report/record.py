"""One trajectory as the page's script reads it: plain values, inert text, everything cut to a stated size.

A record holds question, answer, grade, the means H(r_k) with their intervals, and blocks in reading order: runs of
tokens with their entropies (hundredths of nats, -1 where not measured) and rounds of call cards. Results that a card
shows are not repeated as tokens. A record is made while the traces stream by, so its size is bounded whatever the log
holds; token texts become numbers of a vocabulary in `deltah.report.viewer`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

import numpy as np

from deltah.calls.scored import is_correct, waste_levels
from deltah.calls.waste import Waste, WasteLevel
from deltah.core.signal_types import Signal, Verdict
from deltah.core.types import Round, Segment, SegmentKind, ToolCall, Trajectory
from deltah.report.safe import cut, inert, inert_tree
from deltah.runs.directory import nan_to_none
from deltah.stats.tables import tool_title

MAX_TOKENS: Final = 8_000
"""Shown of one trajectory."""
MAX_ARGUMENT_CHARS: Final = 4_000
MAX_RESULT_CHARS: Final = 6_000
MAX_TEXT_CHARS: Final = 4_000
MAX_TOKEN_CHARS: Final = 200
MAX_CALLS: Final = 400
"""Cards of one trajectory."""
UNKNOWN_TOKEN: Final = "▢"


def record(t: Trajectory, signal: Signal | None, waste: Sequence[frozenset[Waste]]) -> dict[str, Any]:
    """Strict-JSON values of one trajectory.

    Args:
        t: T tokens, C calls.
        signal: None where nothing was measured.
        waste: (C,) classes of each call.
    """
    judged = waste_levels(signal, waste)
    found = {
        "id": t.id[:MAX_TEXT_CHARS],
        "text": _text(t.question),
        "prediction": _text(t.prediction),
        "golden": [_text(answer) for answer in t.golden_answers[:5]],
        "outcome": None if t.outcome is None else round(t.outcome, 4),
        "correct": is_correct(t),
        "stop": t.stop_reason.value,
        "spans": t.spans.value,
        "estimator": t.estimator.value,
        "temperature": t.temperature,
        "calls": t.n_calls,
        "reduced": None if signal is None else signal.n_reduced,
        "not_reduced": None if signal is None else signal.count(Verdict.NOT_REDUCED),
        "waste": {v.value: judged.count(v) for v in WasteLevel if v is not WasteLevel.NONE},
        "change": _nats(change(signal)),
        "tokens": int(t.response_mask.sum()),
        "segments": [] if signal is None else _segments(signal),
        "blocks": _blocks(t, signal, _cards(t, waste, judged)),
    }
    return dict(inert_tree(nan_to_none(found)))


def change(signal: Signal | None) -> float:
    """H(r_R) - H(r_0): how the whole trajectory changed the policy's entropy, nats; NaN where an end is missing."""
    if signal is None or signal.n_rounds == 0:
        return float("nan")
    return float(signal.segment_entropy[-1] - signal.segment_entropy[0])


def _text(text: str | None) -> str | None:
    if text is None:
        return None
    kept, lost = cut(text, MAX_TEXT_CHARS)
    return kept if not lost else f"{kept} … ({lost:,} more characters)"


def _segments(signal: Signal) -> list[dict[str, Any]]:
    """H(r_k), k = 0 ... R."""
    return [
        {"h": _nats(h), "low": _nats(low), "high": _nats(high), "n": int(n)}
        for h, low, high, n in zip(
            signal.segment_entropy, signal.segment_lower, signal.segment_upper, signal.segment_tokens, strict=True
        )
    ]


def _nats(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def _blocks(t: Trajectory, signal: Signal | None, cards: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs of tokens and rounds of call cards, in reading order."""
    blocks, left = list[dict[str, Any]](), MAX_TOKENS
    for item in _reading_order(t):
        if isinstance(item, Round):
            block = _round_block(signal, item, cards)
        else:
            block = _token_block(t, item, left)
            left -= len(block.get("tokens", ()))
        blocks.append(block)
    return blocks


def _reading_order(t: Trajectory) -> Iterator[Segment | Round]:
    """Segments with each round's cards where its results stand; results that a card shows are left out."""
    waiting, answered = list(t.rounds), {r.turn for r in t.rounds}
    for segment in t.segments:
        result = segment.kind is SegmentKind.RESULT
        while waiting and (segment.turn > waiting[0].turn or (result and segment.turn == waiting[0].turn)):
            yield waiting.pop(0)
        if not result or segment.turn not in answered:
            yield segment
    yield from waiting


def _token_block(t: Trajectory, segment: Segment, left: int) -> dict[str, Any]:
    """One segment: its tokens with their entropies, or its text where the tokens are unknown."""
    block: dict[str, Any] = {"kind": segment.kind.value}
    if segment.kind.sampled:
        k = int(t.segment_of_token[segment.start]) if segment.n_tokens else _segment_index(t, segment)
        block["r"] = k
    if segment.n_tokens == 0:
        block["text"] = _text(segment.text) or ""
        return block
    stop = min(segment.stop, segment.start + max(left, 0))
    span = range(segment.start, stop)
    block["tokens"] = [_token_text(t, i) for i in span]
    if t.entropy is not None and segment.kind.sampled:
        hundredths = np.nan_to_num(np.round(t.entropy[segment.start : stop] * 100), nan=-1.0)
        block["h"] = hundredths.astype(np.int64).tolist()
    if stop < segment.stop:
        block["cut"] = segment.stop - stop
    return block


def _segment_index(t: Trajectory, segment: Segment) -> int:
    return sum(r.turn < segment.turn for r in t.rounds)


def _token_text(t: Trajectory, i: int) -> str:
    """One token as it may be shown; equal tokens share one string, as records wait in memory."""
    if t.token_texts is None:
        return UNKNOWN_TOKEN if t.token_ids is None else f"⟨{int(t.token_ids[i])}⟩"
    text = t.token_texts[i]
    return sys.intern(inert(text if len(text) <= MAX_TOKEN_CHARS else text[:MAX_TOKEN_CHARS] + "…"))


def _round_block(signal: Signal | None, round_: Round, cards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The cards of one round."""
    block: dict[str, Any] = {"kind": "round", "k": round_.k}
    if signal is not None:
        at = round_.k - 1
        block |= {"label": signal.verdicts[at].value, "delta_h": _nats(signal.value[at])}
        block |= {"low": _nats(signal.lower[at]), "high": _nats(signal.upper[at])}
    block["calls"] = [cards[i] for i in round_.calls if i < len(cards)]
    if len(block["calls"]) < len(round_.calls):
        block["cut"] = len(round_.calls) - len(block["calls"])
    return block


def _cards(t: Trajectory, waste: Sequence[frozenset[Waste]], judged: Sequence[WasteLevel]) -> list[dict[str, Any]]:
    """The first `MAX_CALLS` calls."""
    every = zip(t.calls, waste, judged, strict=True)
    return [_card(*each) for each in islice(every, MAX_CALLS)]


def _card(call: ToolCall, waste: frozenset[Waste], judged: WasteLevel) -> dict[str, Any]:
    """One call."""
    arguments, arguments_cut = cut(call.arguments, MAX_ARGUMENT_CHARS)
    result, result_cut = cut(call.result or "", MAX_RESULT_CHARS)
    card: dict[str, Any] = {"name": tool_title(call.name[:200]), "arguments": arguments, "status": call.status.value}
    card["result"] = None if call.result is None else result
    if waste:
        card |= {"waste": [w.value for w in Waste if w in waste], "verdict": judged.value}
    if call.duration_s is not None:
        card["seconds"] = round(call.duration_s, 4)
    if arguments_cut:
        card["arguments_cut"] = arguments_cut
    if result_cut:
        card["result_cut"] = result_cut
    return card

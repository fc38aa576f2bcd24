"""One trajectory as the page's script reads it: plain values, inert text, everything cut to a stated size.

A record holds question, answer, grade, the means H(r_k) with their intervals, and blocks in reading order: runs of
tokens with their entropies (hundredths of nats, -1 where not measured) and rounds of call cards. Results that a card
shows are not repeated as tokens. A record is made while the traces stream by, so its size is bounded whatever the log
holds; token texts become numbers of a vocabulary in `deltah.report.viewer`.

Inert text: control characters, bidirectional overrides and invisible tag characters become visible symbols, so that a
log can neither hide text nor reorder it; lone surrogates, which UTF-8 cannot hold, are spelled out. Newline and tab
stay. Escaping for HTML is done by the template engine (autoescape), not here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from deltah.calls.grading import is_correct
from deltah.calls.waste import Waste, WasteLevel, waste_levels
from deltah.core.signals import Signal, Verdict
from deltah.core.types import Round, Segment, SegmentKind, ToolCall, Trajectory
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
_CONTROL_PICTURES: Final = 0x2400
_INERT: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, C1
    "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff"  # marks, overrides, isolates, invisibles
    "\ufff9-\ufffb\ufffe\uffff"  # interlinear annotation, noncharacters
    "\ud800-\udfff"  # lone surrogates
    "\U000e0000-\U000e007f]"  # tag characters
)
_SCRIPT_ESCAPES: Final = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def record(t: Trajectory, signal: Signal | None, waste: Sequence[frozenset[Waste]]) -> dict[str, Any]:
    """Strict-JSON values of one trajectory.

    Args:
        t: T tokens, C calls.
        signal: None where nothing was measured.
        waste: (C,) classes of each call.
    """
    levels = waste_levels(signal, waste)
    shown = zip(t.calls[:MAX_CALLS], waste[:MAX_CALLS], levels[:MAX_CALLS], strict=True)
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
        "not_reduced": None if signal is None else signal.call_verdicts.count(Verdict.NOT_REDUCED),
        "waste": {v.value: levels.count(v) for v in WasteLevel if v is not WasteLevel.NONE},
        "change": _nats(change(signal)),
        "tokens": int(t.response_mask.sum()),
        "segments": [] if signal is None else _segments(signal),
        "blocks": _blocks(t, signal, [_card(*call) for call in shown]),
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
        k = int(t.segment_of_token[segment.start]) if segment.n_tokens else sum(r.turn < segment.turn for r in t.rounds)
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
        block |= {"verdict": signal.verdicts[at].value, "value": _nats(signal.value[at])}
        block |= {"low": _nats(signal.lower[at]), "high": _nats(signal.upper[at])}
    block["calls"] = [cards[i] for i in round_.calls if i < len(cards)]
    if len(block["calls"]) < len(round_.calls):
        block["cut"] = len(round_.calls) - len(block["calls"])
    return block


def _card(call: ToolCall, waste: frozenset[Waste], level: WasteLevel) -> dict[str, Any]:
    """One call."""
    arguments, arguments_cut = cut(call.arguments, MAX_ARGUMENT_CHARS)
    result, result_cut = cut(call.result or "", MAX_RESULT_CHARS)
    card: dict[str, Any] = {"name": tool_title(call.name[:200]), "arguments": arguments, "status": call.status.value}
    card["result"] = None if call.result is None else result
    if waste:
        card |= {"waste": [w.value for w in Waste if w in waste], "waste_level": level.value}
    if call.duration_s is not None:
        card["seconds"] = round(call.duration_s, 4)
    if arguments_cut:
        card["arguments_cut"] = arguments_cut
    if result_cut:
        card["result_cut"] = result_cut
    return card


def inert(text: str) -> str:
    """Replace what could hide, reorder or break text by visible symbols: ESC becomes ␛, U+202E becomes ⟨U+202E⟩."""
    return _INERT.sub(_visible, text)


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(_CONTROL_PICTURES + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else f"⟨U+{code:04X}⟩"


def inert_tree(value: Any) -> Any:
    """Apply `inert` to every string of plain containers, keys included."""
    if isinstance(value, str):
        return inert(value)
    if isinstance(value, Mapping):
        return {inert(str(key)): inert_tree(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [inert_tree(item) for item in value]
    return value


def cut(text: str, limit: int) -> tuple[str, int]:
    """The first `limit` characters, and how many were cut off."""
    return text[:limit], max(0, len(text) - limit)


def script_json(value: Any) -> str:
    """Strict JSON without `<`, `>` or `&`: no content can end the `<script>` element it stands in."""
    return compact_json(value).translate(_SCRIPT_ESCAPES)


def compact_json(value: Any) -> str:
    """Strict JSON on one line, keys in their given order."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

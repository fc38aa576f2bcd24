"""The trajectories of the viewer: which are kept while a log streams by, and how they are stored.

Kept are four bounded lists per evaluation. Drawn is a bottom-k sample by the hash of seed and question, the same
questions in every run. A record is plain values, each cut to a stated size; tokens are indices into one vocabulary,
with entropies in hundredths of nats (-1: not measured). Text is inert: control characters, bidirectional overrides and
invisible characters become visible symbols, so that a log can neither hide nor reorder text.
"""

from __future__ import annotations

import heapq
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from itertools import count
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from deltah.calls.evidence import REPEATS, CallFacts, Waste, WasteLevel
from deltah.calls.grading import ClusterKey, cluster_key, is_correct
from deltah.calls.table import CallTable
from deltah.core.signals import Signal, Verdict
from deltah.core.types import Round, Segment, SegmentKind, ToolCall, Trajectory
from deltah.runs import nan_to_none
from deltah.text_format import agreeing, inert, tool_title

MAX_TOKENS: Final = 8_000
"""Shown of one trajectory."""
MAX_ARGUMENT_CHARS: Final = 4_000
MAX_RESULT_CHARS: Final = 6_000
MAX_TEXT_CHARS: Final = 4_000
MAX_TOKEN_CHARS: Final = 200
MAX_CALLS: Final = 400
"""Cards of one trajectory."""
MAX_BYTES: Final = 6_000_000
"""Of the stored trajectories; the page around them is small."""
UNKNOWN_TOKEN: Final = "▢"
_SCRIPT_ESCAPES: Final = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


class Reason(StrEnum):
    """Why a trajectory is kept."""

    WASTEFUL = "wasteful"
    CERTAIN_AND_WRONG = "certain_and_wrong"
    """Entropy fell most, the answer is not correct."""
    RISE_AND_RIGHT = "rise_and_right"
    """Entropy rose most, the answer is correct."""
    DRAWN = "drawn"


KEPT: Final[Mapping[Reason, int]] = {
    Reason.WASTEFUL: 40,
    Reason.CERTAIN_AND_WRONG: 20,
    Reason.RISE_AND_RIGHT: 20,
    Reason.DRAWN: 200,
}
"""Trajectories of one evaluation held for each reason."""
_Rank: TypeAlias = tuple[float, ...]


class Candidate(NamedTuple):
    """One trajectory that the viewer may show."""

    order: int
    """Place in its evaluation, from 0."""
    cluster: ClusterKey
    repeat: int
    """How many trajectories of the same question came before it in its evaluation."""
    record: Mapping[str, Any]


class Pick(NamedTuple):
    """One trajectory chosen for viewing; `arm` is an index into `ReportData.columns`."""

    arm: int
    evaluation: str
    candidate: Candidate
    reason: Reason


@dataclass(slots=True)
class Collector:
    """Keeps the best trajectories for each reason."""

    seed: int
    _heaps: dict[Reason, list[tuple[_Rank, int, Candidate]]] = field(default_factory=lambda: {r: [] for r in Reason})
    _seen: Counter[ClusterKey] = field(default_factory=Counter)
    _count: int = 0

    def offer(self, trajectory: Trajectory, signal: Signal | None, facts: Sequence[CallFacts]) -> None:
        """Keep a trajectory where it is among the best; its record is made only then."""
        cluster = cluster_key(trajectory)
        order, repeat = self._count, self._seen[cluster]
        self._count += 1
        self._seen[cluster] += 1
        name = "\0".join((str(self.seed), *cluster)).encode("utf-8", "surrogatepass")
        drawn = int.from_bytes(blake2b(name, digest_size=8).digest())  # the same for a seed and a question everywhere
        ranks = {**_notable(trajectory, signal, facts), Reason.DRAWN: (-repeat, -drawn)}
        candidate = None
        for reason, rank in ranks.items():
            heap = self._heaps[reason]
            if len(heap) == KEPT[reason] and (rank, -order) < heap[0][:2]:
                continue
            candidate = candidate or Candidate(order, cluster, repeat, record(trajectory, signal, facts))
            heapq.heappush(heap, (rank, -order, candidate))
            if len(heap) > KEPT[reason]:
                heapq.heappop(heap)

    def candidates(self, table: CallTable) -> dict[Reason, tuple[Candidate, ...]]:
        """What was kept, best first, with the levels of waste that the table of the same trajectories has."""
        kept = {reason: [entry[2] for entry in sorted(heap, reverse=True)] for reason, heap in self._heaps.items()}
        keys = [candidate.order for candidates in kept.values() for candidate in candidates]
        query = "SELECT key, list(waste_level ORDER BY index) FROM calls WHERE list_contains($keys, key) GROUP BY key"
        levels = dict(table.sql(query, keys=keys).fetchall()) if keys else {}
        for candidate in (candidate for candidates in kept.values() for candidate in candidates):
            set_levels(candidate.record, levels.get(candidate.order, ()))
        kept[Reason.WASTEFUL] = sorted(filter(_wasted, kept[Reason.WASTEFUL]), key=_wasted, reverse=True)
        return {reason: tuple(candidates) for reason, candidates in kept.items()}


def _wasted(candidate: Candidate) -> tuple[int, ...]:
    """Calls of certified and of likely waste; empty without any."""
    counts: Mapping[str, int] = candidate.record["waste"]
    found = (counts[WasteLevel.CERTIFIED], counts[WasteLevel.LIKELY])
    return found if any(found) else ()


def _notable(t: Trajectory, signal: Signal | None, facts: Sequence[CallFacts]) -> dict[Reason, _Rank]:
    """Rank of a trajectory in each list it may enter; more is better."""
    verdicts = [None] * t.n_calls if signal is None else signal.call_verdicts
    repeated = [v for v, fact in zip(verdicts, facts, strict=True) if not fact.waste.isdisjoint(REPEATS)]
    wasted = (len(repeated) - repeated.count(Verdict.REDUCED), repeated.count(Verdict.NOT_REDUCED))
    ranks: dict[Reason, _Rank] = {Reason.WASTEFUL: wasted} if any(wasted) else {}
    rise, correct = change(signal), is_correct(t)
    if rise < 0 and correct is not None and not correct:
        ranks[Reason.CERTAIN_AND_WRONG] = (-rise,)
    if rise > 0 and correct:
        ranks[Reason.RISE_AND_RIGHT] = (rise,)
    return ranks


def record(t: Trajectory, signal: Signal | None, facts: Sequence[CallFacts]) -> dict[str, Any]:
    """Strict-JSON values of one trajectory; `signal` is None where nothing was measured. `set_levels` completes it."""
    shown = zip(t.calls[:MAX_CALLS], facts[:MAX_CALLS], strict=True)
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
        "waste": {level.value: 0 for level in WasteLevel if level is not WasteLevel.NONE},
        "change": _nats(change(signal)),
        "tokens": int(t.response_mask.sum()),
        "segments": [] if signal is None else _segments(signal),
        "blocks": _blocks(t, signal, [_card(*call) for call in shown]),
    }
    return dict(inert_tree(nan_to_none(found)))


def set_levels(record: Mapping[str, Any], levels: Sequence[str]) -> None:
    """Put the waste level of every call into a record, and how many have each."""
    record["waste"].update({level: levels.count(level) for level in record["waste"]})
    cards = (card for block in record["blocks"] for card in block.get("calls", ()))
    for card, level in zip(cards, levels, strict=False):
        if "waste" in card:
            card["waste_level"] = level


def change(signal: Signal | None) -> float:
    """H(r_R) - H(r_0), nats; NaN where an end is missing."""
    if signal is None or signal.n_rounds == 0:
        return float("nan")
    return float(signal.segment_entropy[-1] - signal.segment_entropy[0])


def _text(text: str | None) -> str | None:
    if text is None or len(text) <= MAX_TEXT_CHARS:
        return text
    return f"{text[:MAX_TEXT_CHARS]} … ({len(text) - MAX_TEXT_CHARS:,} more characters)"


def _segments(s: Signal) -> list[dict[str, Any]]:
    bounds = zip(s.segment_entropy, s.segment_lower, s.segment_upper, s.segment_tokens, strict=True)
    return [{"h": _nats(h), "low": _nats(low), "high": _nats(high), "n": int(n)} for h, low, high, n in bounds]


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
    """One token as it is shown; equal tokens share one string, as records wait in memory."""
    if t.token_texts is None:
        return UNKNOWN_TOKEN if t.token_ids is None else f"⟨{int(t.token_ids[i])}⟩"
    text = t.token_texts[i]
    return sys.intern(inert(text if len(text) <= MAX_TOKEN_CHARS else text[:MAX_TOKEN_CHARS] + "…"))


def _round_block(signal: Signal | None, round_: Round, cards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    block: dict[str, Any] = {"kind": "round", "k": round_.k}
    if signal is not None:
        at = round_.k - 1
        block |= {"verdict": signal.verdicts[at].value, "value": _nats(signal.value[at])}
        block |= {"low": _nats(signal.lower[at]), "high": _nats(signal.upper[at])}
        if signal.reasons and (reason := signal.reasons[at]) is not None:
            block["reason"] = reason
    block["calls"] = [cards[i] for i in round_.calls if i < len(cards)]
    if lost := len(round_.calls) - len(block["calls"]):
        block["cut"] = lost
    return block


def _card(call: ToolCall, facts: CallFacts) -> dict[str, Any]:
    card: dict[str, Any] = {"name": tool_title(call.name[:200]), "status": call.status.value}
    for key, text, limit in (
        ("arguments", call.arguments, MAX_ARGUMENT_CHARS),
        ("result", call.result or "", MAX_RESULT_CHARS),
    ):
        card[key] = text[:limit]
        if len(text) > limit:
            card[f"{key}_cut"] = len(text) - limit
    if call.result is None:
        card["result"] = None
    if facts.waste:
        card["waste"] = [waste.value for waste in Waste if waste in facts.waste]
    if call.duration_s is not None:
        card["seconds"] = round(call.duration_s, 4)
    return card


def inert_tree(value: Any) -> Any:
    """Apply `inert` to every string of plain containers, keys included."""
    if isinstance(value, str):
        return inert(value)
    if isinstance(value, Mapping):
        return {inert(str(key)): inert_tree(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [inert_tree(item) for item in value]
    return value


def script_json(value: Any) -> str:
    """Strict JSON without `<`, `>` or `&`: no content can end the `<script>` element it stands in."""
    return compact_json(value).translate(_SCRIPT_ESCAPES)


def compact_json(value: Any) -> str:
    """Strict JSON on one line, keys in their given order."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def pack(
    picks: Sequence[Pick], note: str, *, arms: Sequence[str], evaluations: Sequence[str], max_bytes: int = MAX_BYTES
) -> dict[str, Any]:
    """The viewer's part of the payload, within `max_bytes`, in the order of the arms, evaluations and files."""
    kept, vocabulary, size = list[tuple[Pick, dict[str, Any]]](), dict[str, int](), 0
    for pick in picks:
        texts = len(vocabulary)
        record = _numbered(pick, vocabulary)
        # Measured as it will stand in the page: escapes can make a text several times longer.
        size += len(script_json([record, list(vocabulary)[texts:]]).encode())
        if size > max_bytes and kept:
            shown = f"{len(kept):,} of them {agreeing(len(kept), 'is', 'are')}"
            note += f" Only {shown} kept: the page is limited to {max_bytes / 1e6:.0f} MB."
            break
        kept.append((pick, record))
    kept.sort(key=lambda entry: (entry[0].arm, evaluations.index(entry[0].evaluation), entry[0].candidate.order))
    records = _identified(arms, kept)
    return {"note": note, "vocabulary": _by_frequency(vocabulary, records), "trajectories": records}


def _numbered(pick: Pick, vocabulary: dict[str, int]) -> dict[str, Any]:
    """A copy of a pick's record with tokens as numbers of the vocabulary, which grows."""
    blocks = []
    for block in pick.candidate.record["blocks"]:
        numbers = [vocabulary.setdefault(text, len(vocabulary)) for text in block.get("tokens", ())]
        blocks.append({**block, "tokens": numbers} if "tokens" in block else block)
    return {**pick.candidate.record, "blocks": blocks}


def _identified(arms: Sequence[str], kept: Iterable[tuple[Pick, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Records with their place, a key for links, and a number shared by the trajectories of one question."""
    keys, questions, records = set[str](), dict[ClusterKey, int](), list[dict[str, Any]]()
    for pick, record in kept:
        name = inert(f"{arms[pick.arm]}/{pick.evaluation}/{record['id']}"[:300])
        key = unused(name, keys, "~{}")
        keys.add(key)
        place = {"arm": pick.arm, "evaluation": inert(pick.evaluation), "reason": pick.reason.value}
        question = questions.setdefault(pick.candidate.cluster, len(questions))
        records.append({"key": key, **place, "question": question, **record})
    return records


def _by_frequency(vocabulary: dict[str, int], records: Iterable[dict[str, Any]]) -> list[str]:
    """Renumber the tokens of all records so that frequent texts have short numbers; returns the used texts."""
    texts = list(vocabulary)
    lists = [block["tokens"] for record in records for block in record["blocks"] if "tokens" in block]
    counts = Counter(token for tokens in lists for token in tokens)
    order = sorted(counts, key=lambda token: (-counts[token], token))
    number = {token: i for i, token in enumerate(order)}
    for tokens in lists:
        tokens[:] = [number[token] for token in tokens]
    return [texts[token] for token in order]


def unused(name: str, taken: set[str], suffix: str) -> str:
    """The name, followed by the first number from 2 on that makes it a new one; `suffix` says how."""
    numbered = (name + suffix.format(n) for n in count(2))
    return name if name not in taken else next(found for found in numbered if found not in taken)

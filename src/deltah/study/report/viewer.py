"""The trajectories a page lets the reader open: which ones, and how they are stored.

Statistics cover every trajectory; the viewer holds a sample under a cap on count and size. With several arms those
questions are drawn that all arms answered, so that the same question can be read before and after. Where arms share
too few, the rest is half the most wasteful trajectories, half drawn by chance; the page says so.

Stored form: one vocabulary of token texts (most frequent first), token lists as indices into it, entropies as
hundredths of nats (-1: not measured). The page's script renders the opened trajectory only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from deltah.core.scored import CallLabel, Signal
from deltah.core.types import Round, Segment, SegmentKind, ToolCall, Trajectory
from deltah.study.report.data import ReportData, Scored
from deltah.study.report.safe import cut, inert, inert_tree, script_json
from deltah.study.summary import cluster_key, is_correct
from deltah.traces.rundir import nan_to_none

MAX_TRAJECTORIES: Final = 200
MAX_BYTES: Final = 6_000_000
"""Of the stored trajectories; the page around them is small."""
MAX_TOKENS: Final = 8_000
"""Shown of one trajectory."""
MAX_ARGUMENT_CHARS: Final = 4_000
MAX_RESULT_CHARS: Final = 6_000
MAX_TEXT_CHARS: Final = 4_000
MAX_TOKEN_CHARS: Final = 200
MAX_CALLS: Final = 400
"""Cards of one trajectory."""
UNKNOWN_TOKEN: Final = "▢"


@dataclass(frozen=True, slots=True)
class Pick:
    """One trajectory chosen for viewing."""

    arm: int
    """Index into `ReportData.columns`."""
    evaluation: str
    scored: Scored


@dataclass(slots=True)
class Vocabulary:
    """Token texts numbered in order of first use."""

    index: dict[str, int] = field(default_factory=dict)

    def add(self, text: str) -> int:
        """Number of a text, made inert and cut to `MAX_TOKEN_CHARS`."""
        if len(text) > MAX_TOKEN_CHARS:
            text = text[:MAX_TOKEN_CHARS] + "…"
        return self.index.setdefault(inert(text), len(self.index))


def choose(data: ReportData, limit: int = MAX_TRAJECTORIES) -> tuple[list[Pick], str]:
    """Trajectories to show, and one sentence saying how they were chosen."""
    every = [
        Pick(i, name, scored)
        for i, arm in enumerate(data.columns)
        for name, listed in arm.evaluations.items()
        for scored in listed
    ]
    if len(every) <= limit:
        return every, f"All {len(every):,} trajectories."
    paired = _paired(data, limit)
    questions = len({cluster_key(p.scored[0]) for p in paired})
    note = (
        f"Questions that every arm answered: {questions}, drawn with seed {data.seed}, one trajectory for each "
        f"question, arm and evaluation ({len(paired):,} of {len(every):,})."
    )
    if 2 * len(paired) >= limit:
        return paired, note
    shown = {id(p.scored[0]) for p in paired}
    filled, drawn = _sample([p for p in every if id(p.scored[0]) not in shown], limit - len(paired), data.seed)
    note = f"{note} Beside them" if paired else f"{limit:,} of {len(every):,} trajectories:"
    return paired + filled, f"{note} {drawn}. Statistics cover all {len(every):,}."


def _sample(picks: Sequence[Pick], limit: int, seed: int) -> tuple[list[Pick], str]:
    """Half the most wasteful, half by chance, in their order; and the words that say so."""
    waste = sorted(range(len(picks)), key=lambda i: (-_waste(picks[i].scored), i))[: limit // 2]
    others = np.setdiff1d(np.arange(len(picks)), waste)
    drawn = np.random.default_rng(seed).choice(others, size=min(limit - len(waste), len(others)), replace=False)
    kept = sorted({*waste, *drawn.tolist()})
    words = f"the {len(waste)} with the most calls that did not reduce entropy, and {len(drawn)} drawn with seed {seed}"
    return [picks[i] for i in kept], words


def _paired(data: ReportData, limit: int) -> list[Pick]:
    """The first trajectory of each drawn question for every arm and evaluation; empty when the arms share none."""
    if len(data.columns) < 2:
        return []
    first: dict[tuple[int, str], dict[tuple[str, str], Scored]] = {}
    for i, arm in enumerate(data.columns):
        for name, listed in arm.evaluations.items():
            for scored in listed:
                first.setdefault((i, name), {}).setdefault(cluster_key(scored[0]), scored)
    if len({i for i, _ in first}) < len(data.columns):
        return []
    shared = set.intersection(*(set(found) for found in first.values()))
    ordered = [key for key in next(iter(first.values())) if key in shared]
    wanted = min(len(ordered), limit // len(first))
    chosen = sorted(np.random.default_rng(data.seed).choice(len(ordered), size=wanted, replace=False).tolist())
    return [Pick(i, name, found[ordered[q]]) for q in chosen for (i, name), found in first.items()]


def _waste(scored: Scored) -> int:
    """Calls that certainly did not reduce entropy."""
    return 0 if scored[1] is None else scored[1].count(CallLabel.NOT_REDUCED)


def pack(data: ReportData, picks: Sequence[Pick], note: str, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The viewer's part of the payload, within `max_bytes`."""
    vocabulary, records, size, keys = Vocabulary(), list[dict[str, Any]](), 0, set[str]()
    questions: dict[tuple[str, str], int] = {}
    for pick in picks:
        texts = len(vocabulary.index)
        record = _record(pick, vocabulary, questions.setdefault(cluster_key(pick.scored[0]), len(questions)))
        key = inert(f"{data.columns[pick.arm].name}/{pick.evaluation}/{pick.scored[0].id}"[:300])
        record = {"key": _unique(key, keys)} | nan_to_none(inert_tree(record))
        # Measured as it will stand in the page: escapes can make a text several times longer.
        size += len(script_json([record, list(vocabulary.index)[texts:]]).encode())
        if size > max_bytes and records:
            note += f" Only the first {len(records)} are kept: the page is limited to {max_bytes / 1e6:.0f} MB."
            break
        records.append(record)
    return {"note": note, "vocabulary": _by_frequency(vocabulary, records), "trajectories": records}


def _unique(key: str, taken: set[str]) -> str:
    base, count = key, 1
    while key in taken:
        count += 1
        key = f"{base}~{count}"
    taken.add(key)
    return key


def _by_frequency(vocabulary: Vocabulary, records: Iterable[dict[str, Any]]) -> list[str]:
    """Renumber the records' tokens so that frequent ones have short numbers; return the texts in that order."""
    texts = list(vocabulary.index)
    lists = [block["tokens"] for record in records for block in record["blocks"] if "tokens" in block]
    counts = Counter(token for tokens in lists for token in tokens)
    order = sorted(counts, key=lambda token: (-counts[token], token))
    number = {token: i for i, token in enumerate(order)}
    for tokens in lists:
        tokens[:] = [number[token] for token in tokens]
    return [texts[token] for token in order]


def _record(pick: Pick, vocabulary: Vocabulary, question: int) -> dict[str, Any]:
    """One trajectory as the page's script reads it."""
    t, signal = pick.scored
    return {
        "arm": pick.arm,
        "evaluation": pick.evaluation,
        "id": t.id[:MAX_TEXT_CHARS],
        "question": question,
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
        "waste": None if signal is None else _waste(pick.scored),
        "tokens": int(t.response_mask.sum()),
        "segments": [] if signal is None else _segments(signal),
        "blocks": _blocks(t, signal, vocabulary),
    }


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


def _blocks(t: Trajectory, signal: Signal | None, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Runs of tokens and rounds of call cards, in reading order."""
    blocks, left, cards = [], MAX_TOKENS, MAX_CALLS
    for item in _reading_order(t):
        if isinstance(item, Round):
            block = _round_block(t, signal, item, cards)
            cards -= len(block["calls"])
        else:
            block = _token_block(t, item, vocabulary, left)
            left -= len(block.get("tokens", ()))
        blocks.append(block)
    return blocks


def _reading_order(t: Trajectory) -> Iterator[Segment | Round]:
    """Segments with each round's cards where its results stand; results that a card shows are left out."""
    waiting = list(t.rounds)
    for segment in t.segments:
        while waiting and (segment.turn > waiting[0].turn or _answers(segment, waiting[0])):
            yield waiting.pop(0)
        if segment.kind is not SegmentKind.RESULT or not any(r.turn == segment.turn for r in t.rounds):
            yield segment
    yield from waiting


def _answers(segment: Segment, round_: Round) -> bool:
    return segment.kind is SegmentKind.RESULT and segment.turn == round_.turn


def _token_block(t: Trajectory, segment: Segment, vocabulary: Vocabulary, left: int) -> dict[str, Any]:
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
    block["tokens"] = [vocabulary.add(_token_text(t, i)) for i in span]
    if t.entropy is not None and segment.kind.sampled:
        hundredths = np.nan_to_num(np.round(t.entropy[segment.start : stop] * 100), nan=-1.0)
        block["h"] = hundredths.astype(np.int64).tolist()
    if stop < segment.stop:
        block["cut"] = segment.stop - stop
    return block


def _segment_index(t: Trajectory, segment: Segment) -> int:
    return sum(r.turn < segment.turn for r in t.rounds)


def _token_text(t: Trajectory, i: int) -> str:
    if t.token_texts is not None:
        return t.token_texts[i]
    return UNKNOWN_TOKEN if t.token_ids is None else f"⟨{int(t.token_ids[i])}⟩"


def _round_block(t: Trajectory, signal: Signal | None, round_: Round, room: int) -> dict[str, Any]:
    """The cards of one round."""
    block: dict[str, Any] = {"kind": "round", "k": round_.k}
    if signal is not None:
        at = round_.k - 1
        block |= {"label": signal.labels[at].value, "delta_h": _nats(signal.delta_h[at])}
        block |= {"low": _nats(signal.lower[at]), "high": _nats(signal.upper[at])}
    shown = round_.calls[: max(room, 0)]
    block["calls"] = [_card(t.calls[i]) for i in shown]
    if len(shown) < len(round_.calls):
        block["cut"] = len(round_.calls) - len(shown)
    return block


def _card(call: ToolCall) -> dict[str, Any]:
    arguments, arguments_cut = cut(call.arguments, MAX_ARGUMENT_CHARS)
    result, result_cut = cut(call.result or "", MAX_RESULT_CHARS)
    card: dict[str, Any] = {"name": call.name[:200], "arguments": arguments, "status": call.status.value}
    card["result"] = None if call.result is None else result
    if call.duration_s is not None:
        card["seconds"] = round(call.duration_s, 4)
    if arguments_cut:
        card["arguments_cut"] = arguments_cut
    if result_cut:
        card["result_cut"] = result_cut
    return card

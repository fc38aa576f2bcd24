"""The trajectories a page lets the reader open: which ones, and how they are stored.

Statistics cover every trajectory; the viewer holds a sample under a cap on count and size. Three quarters are drawn by
chance, and with several arms first those questions that all arms answered, so that one question can be read in each;
the rest are the most wasteful trajectories and the method's failure cases. The page says so.

Stored form: one vocabulary of token texts (most frequent first), and token lists as indices into it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final, NamedTuple

from deltah.calls.grading import ClusterKey
from deltah.report.data import ReportData, unused
from deltah.report.viewer_record import Candidate, Reason, inert, script_json
from deltah.text_format import agreeing, count, share

MAX_TRAJECTORIES: Final = 200
MAX_BYTES: Final = 6_000_000
"""Of the stored trajectories; the page around them is small."""
NOTABLE_SHARE: Final = 0.25
"""Of the viewer, kept for wasteful trajectories and failure cases."""
_SHARES: Final = ((Reason.WASTEFUL, 0.5), (Reason.CERTAIN_AND_WRONG, 0.25), (Reason.RISE_AND_RIGHT, 0.25))


class Pick(NamedTuple):
    """One trajectory chosen for viewing; `arm` is an index into `ReportData.columns`."""

    arm: int
    evaluation: str
    candidate: Candidate
    reason: Reason


_Source = Mapping[Reason, Sequence[Pick]]
"""What one evaluation of one arm offers, best first."""


def choose(data: ReportData, limit: int = MAX_TRAJECTORIES) -> tuple[list[Pick], str]:
    """Trajectories to show, those to drop last first, and one sentence saying how they were chosen."""
    total = sum(map(len, data.every_evaluation))
    sources: list[_Source] = [
        {reason: [Pick(i, name, c, reason) for c in found] for reason, found in evaluation.candidates.items()}
        for i, arm in enumerate(data.columns)
        for name, evaluation in arm.evaluations.items()
    ]
    if total <= limit:
        note = "The only trajectory." if total == 1 else f"All {count(total, 'trajectory')}."
        return [pick for source in sources for pick in source[Reason.DRAWN]], note
    room = int(limit * NOTABLE_SHARE)
    each = ((source[reason], int(room * part / len(sources))) for source in sources for reason, part in _SHARES)
    notable = _distinct((pick for picks, n in each for pick in picks[:n]), room)
    paired = _paired(data, sources, limit - len(notable))
    turns = zip_longest(*(source[Reason.DRAWN] for source in sources))
    rest = (pick for turn in turns for pick in turn if pick is not None)
    chosen = _distinct([*notable, *paired, *rest], limit)
    return chosen, _note(chosen, len({p.candidate.cluster for p in paired}), total, data)


def _paired(data: ReportData, sources: Sequence[_Source], room: int) -> list[Pick]:
    """First trajectories of drawn questions that every arm and evaluation has; empty when the arms share none."""
    if len(data.columns) < 2 or not all(arm.evaluations for arm in data.columns):
        return []
    first = [{p.candidate.cluster: p for p in s[Reason.DRAWN] if p.candidate.repeat == 0} for s in sources]
    shared = [key for key in first[0] if all(key in found for found in first)]
    return [found[key] for key in shared[: room // len(sources)] for found in first]


def _distinct(picks: Iterable[Pick], limit: int) -> list[Pick]:
    """Each trajectory once, under the first reason it came with."""
    found: dict[tuple[int, str, int], Pick] = {}
    for pick in picks:
        found.setdefault((pick.arm, pick.evaluation, pick.candidate.order), pick)
    return list(found.values())[:limit]


def _note(picks: Sequence[Pick], shared: int, total: int, data: ReportData) -> str:
    """How the trajectories were chosen, for the reader."""
    counts = Counter(pick.reason for pick in picks)
    failures = counts[Reason.CERTAIN_AND_WRONG] + counts[Reason.RISE_AND_RIGHT]
    parts = [f"{counts[Reason.DRAWN]} drawn with seed {data.seed}"]
    if shared:
        parts[0] += f", among them {count(shared, 'question')} that every {data.noun} answered"
    if wasteful := counts[Reason.WASTEFUL]:
        parts.append("the most wasteful one" if wasteful == 1 else f"the {wasteful:,} most wasteful")
    if failures:
        parts.append(f"{count(failures, 'failure case')} (more certain and wrong, less certain and right)")
    return f"{share(len(picks), total, 'trajectory')}: {'; '.join(parts)}. Statistics cover all {total:,}."


def pack(data: ReportData, picks: Sequence[Pick], note: str, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The viewer's part of the payload, within `max_bytes`, in the order of the arms and their files."""
    kept, vocabulary, size = list[tuple[Pick, dict[str, Any]]](), dict[str, int](), 0
    for pick in picks:
        texts = len(vocabulary)
        record = _numbered(pick, vocabulary)
        # Measured as it will stand in the page: escapes can make a text several times longer.
        size += len(script_json([record, list(vocabulary)[texts:]]).encode())
        if size > max_bytes and kept:
            kept_now = f"{len(kept):,} of them {agreeing(len(kept), 'is', 'are')} kept"
            note += f" Only {kept_now}: the page is limited to {max_bytes / 1e6:.0f} MB."
            break
        kept.append((pick, record))
    names = data.evaluation_names
    kept.sort(key=lambda entry: (entry[0].arm, names.index(entry[0].evaluation), entry[0].candidate.order))
    records = _identified(data, kept)
    return {"note": note, "vocabulary": _by_frequency(vocabulary, records), "trajectories": records}


def _numbered(pick: Pick, vocabulary: dict[str, int]) -> dict[str, Any]:
    """A copy of a pick's record with tokens as numbers of the vocabulary, which grows."""
    blocks = []
    for block in pick.candidate.record["blocks"]:
        numbers = [vocabulary.setdefault(text, len(vocabulary)) for text in block.get("tokens", ())]
        blocks.append({**block, "tokens": numbers} if "tokens" in block else block)
    return {**pick.candidate.record, "blocks": blocks}


def _identified(data: ReportData, kept: Iterable[tuple[Pick, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Records with their place, a key for links, and a number shared by the trajectories of one question."""
    keys, questions, records = set[str](), dict[ClusterKey, int](), list[dict[str, Any]]()
    for pick, record in kept:
        name = inert(f"{data.columns[pick.arm].name}/{pick.evaluation}/{record['id']}"[:300])
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

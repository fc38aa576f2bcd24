"""A study in words: one table of cells per label, which terminal, Markdown file and page write each in its own way."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from deltah.stats.associations import Association
from deltah.stats.bootstrap import LEVEL, Cell, Estimate, estimate_cell
from deltah.stats.columns import CALL_INDEX, REDUCTION, signal_note
from deltah.stats.labels import LABELS
from deltah.stats.study import FailureKind, StudyResult
from deltah.text_format import MISSING, count, number, tool_title

TITLES: Final = {
    "auc": "AUC",
    "auc_within_index": "AUC within call index",
    "auc_stratified": "AUC within index, tool, length",
    "spearman": "Spearman",
    "partial_spearman": "partial Spearman",
    "point_biserial": "point-biserial",
    "partial_point_biserial": "partial point-biserial",
    "p": "p",
    "p_holm": "p, Holm",
    "p_partial": "partial p",
    "p_partial_holm": "partial p, Holm",
}
"""Columns of a label's table: fields of an `Association` with their titles."""
SIGNIFICANT: Final = 0.05
"""Corrected p-value up to which a finding is stated."""
FAILURE_TITLES: Final = {
    FailureKind.FELL_AND_WRONG: "Entropy fell and the answer was wrong",
    FailureKind.ROSE_AND_RIGHT: "Entropy rose and the answer was right",
}
MADE_OF: Final = frozenset({("gold_gain", "useful")})
"""Signal and label that are made of the same numbers: their association is no finding."""


class SignalRow(NamedTuple):
    """One signal against a label: cells by key of `TITLES`, or the reason why there are none."""

    signal: str
    title: str
    n: int
    reason: str | None
    cells: Mapping[str, Cell]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTable:
    """All signals against one label."""

    label: str
    note: str
    size: str
    """What the table rests on, or why it has no rows."""
    graded: bool
    finding: str | None
    rows: tuple[SignalRow, ...]


def label_tables(result: StudyResult, digits: int = 3) -> list[LabelTable]:
    """Tables of a study, label by label; the best signal first."""
    tables = []
    for label in result.labels:
        listed = result.of_label(label)
        rows = []
        for a in listed:
            cells = dict[str, Cell]()
            for key in TITLES if a.reason is None else ():
                value, signed = getattr(a, key), "auc" not in key
                is_p = not isinstance(value, Estimate)
                cells[key] = Cell(text=number(value, 4)) if is_p else estimate_cell(value, digits, signed=signed)
            title = f"{a.signal} (baseline)" if a.signal == CALL_INDEX else a.signal
            rows.append(SignalRow(a.signal, title, a.spearman.n, a.reason, cells))
        table = LabelTable(
            label=label,
            note=label_note(label),
            size=size_note(listed),
            graded=listed[0].graded,
            finding=finding(listed),
            rows=tuple(rows) if any(row.reason is None and row.signal != CALL_INDEX for row in rows) else (),
        )
        tables.append(table)
    return tables


def label_note(name: str) -> str:
    """What a label says."""
    return LABELS[name].meaning if name in LABELS else "a column of the labels file"


def result_size(result: StudyResult) -> str:
    """What the whole study rests on."""
    calls, trajectories = count(result.calls, "call"), count(result.trajectories, "trajectory")
    return f"{calls} of {trajectories}, {count(result.questions, 'question')}"


def size_note(rows: Sequence[Association]) -> str:
    """What one label's table rests on: good calls, calls, questions; or why there is no number."""
    largest = max(rows, key=lambda a: a.spearman.n)
    n, label = largest.spearman.n, largest.label
    if not n:
        missing = LABELS[label].missing if label in LABELS else None
        return f"Not computed: {missing or f'no call has a value of {label}'}."
    good = "" if largest.graded else f"{largest.good:,} good of "
    size = f"{good}{count(n, 'call')}, {count(largest.questions, 'question')}."
    reasons = [a.reason for a in rows if a.signal != CALL_INDEX]
    return size if None in reasons else f"{size} Not computed: {reasons[0]}."


def finding(rows: Sequence[Association]) -> str | None:
    """What one label's table says about ΔH, position and the best signal; None without an AUC of ΔH."""
    by_name = {a.signal: a for a in rows}
    reduction, baseline = by_name.get(REDUCTION), by_name.get(CALL_INDEX)
    if reduction is None or not reduction.auc.n or reduction.reason is not None or reduction.graded:
        return None
    text = (
        f"{reduction.label}: −ΔH has AUC {_short(reduction.auc)}, {_short(reduction.auc_within_index)} within call "
        f"index, {_short(reduction.auc_stratified)} within index, tool and length"
    )
    if baseline is not None and baseline.reason is None:
        text += f"; the call index alone has {_short(baseline.auc)}"
    p, way = f"p = {number(reduction.p_partial_holm, 4)} after Holm", "good calls"
    if reduction.partial_spearman.value <= 0:
        way = "calls that are not good"
    if reduction.p_partial_holm != reduction.p_partial_holm:
        text += ". Given index, tool and segment lengths nothing is left of it to test."
    elif reduction.p_partial_holm <= SIGNIFICANT:
        text += f". Given index, tool and segment lengths, more reduction goes with {way} ({p})."
    else:
        text += f". Given index, tool and segment lengths, no association is shown ({p})."
    others = (a for a in rows if a.reason is None and (a.signal, a.label) not in MADE_OF)
    best = next((a for a in others if a.signal not in (CALL_INDEX, REDUCTION)), None)
    if best is not None and best.auc.value > reduction.auc.value and best.auc.low > 0.5:
        calls = f" on {count(best.auc.n, 'call')}" if best.auc.n != reduction.auc.n else ""
        within = f", {_short(best.auc_within_index)} within call index" if best.auc_within_index.n else ""
        text += f" The greatest AUC is that of {best.signal}{calls}: {_short(best.auc)}{within}."
    return text


def _short(estimate: Estimate) -> str:
    return str(estimate_cell(estimate, 2))


def method_notes(result: StudyResult) -> tuple[str, ...]:
    """How the numbers were made, one sentence or two each; none where there is no number."""
    tests = sum(p == p for a in result.associations for p in (a.p, a.p_partial))
    if not tests:
        return ()
    least = 1 / (result.permutations + 1)
    return (
        "Signals are turned so that greater means more entropy reduction or more evidence of a good call; "
        "an AUC of 0.5 says nothing, below 0.5 it is evidence against a signal.",
        "The AUC within call index says what a signal knows beyond position: where it is 0.5, the signal has shown "
        "position, not entropy, however great its AUC. Compare the AUC itself with that of the call_index baseline.",
        "Partial correlations hold call index, tool and log segment lengths fixed; the AUC within index, tool and "
        "length compares calls of the same index, tool and length tertile. Tertiles are coarse: where it is high and "
        "the partial correlation is not, segment length may explain it.",
        "Rows of unequal n rest on unequal sets of calls (a probe measures a sample of them): their values cannot be "
        "compared with each other.",
        f"Intervals: {LEVEL:.0%}, bootstrap over questions, {result.resamples:,} resamples, seed {result.seed}, those "
        "of AUCs on the scale of log odds; not corrected for their number. p: two-sided, of ranks, "
        f"{result.permutations:,} standardised sign flips of whole questions; Holm's correction over all {tests:,} "
        f"tests of the study, raw and partial. The least possible p is {number(least, 4)}, "
        f"{number(min(1.0, tests * least), 4)} after the correction: such a value means no more than that.",
    )


def signal_notes(result: StudyResult) -> dict[str, str]:
    """What each signal of a study says, by name."""
    return {name: signal_note(name) for name in dict.fromkeys(a.signal for a in result.associations)}


def study_markdown(result: StudyResult) -> str:
    """The study as a Markdown page: one table per label, the position effect, the failure cases."""
    notes = (*method_notes(result), *map(escaped, result.notes))
    lines = ["# Pilot study", "", f"{result_size(result)}.", "", *(f"- {note}" for note in notes)]
    for t in label_tables(result):
        lines += ["", f"## {escaped(t.label)}: {t.note}", "", t.size]
        if t.rows:
            lines += [] if t.finding is None else ["", escaped(t.finding)]
            lines += ["", *_table(("signal", "n", *TITLES.values()), map(_signal_cells, t.rows))]
    positions = (
        (row.index, f"{row.n:,}", str(estimate_cell(row.reduction, 3, signed=True)), *map(_short, row.labels.values()))
        for row in result.positions
    )
    header = ("call index", "calls", "mean −ΔH, nats", *result.labels)
    lines += ["", "## Position", "", *_table(header, positions), "", "## Failure cases"]
    for kind, title in FAILURE_TITLES.items():
        rows = (
            (f.trajectory, f.call, tool_title(f.tool), str(f.index), number(f.reduction, 3, signed=True))
            for f in result.failures
            if f.kind is kind
        )
        lines += ["", f"{title}: {count(result.failure_counts[kind], 'call')}; the clearest, one per trajectory:", ""]
        lines += _table(("trajectory", "call", "tool", "call index", "−ΔH, nats"), rows)
    lines += ["", "## Signals", "", *(f"- `{name}`: {note}" for name, note in signal_notes(result).items())]
    return "\n".join(lines) + "\n"


def _signal_cells(row: SignalRow) -> tuple[str, ...]:
    if row.reason is not None:
        return (row.title, f"{row.n:,}", f"not computed: {row.reason}", *[""] * (len(TITLES) - 1))
    return (row.title, f"{row.n:,}", *map(str, row.cells.values()))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    titles, *listed = (f"| {' | '.join(map(escaped, row))} |" for row in (header, *rows))
    return [titles, "|" + " --- |" * len(header), *listed] if listed else [MISSING]


def escaped(text: str) -> str:
    """Text that can neither break a table nor become markup."""
    return re.sub(r"([\\`*_|<>#])", r"\\\1", " ".join(text.split()))

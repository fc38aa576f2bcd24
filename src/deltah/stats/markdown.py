"""The study as text: cells that the terminal, the page and the Markdown file share, and the Markdown page itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from deltah.stats.associations import Association
from deltah.stats.bootstrap import LEVEL, Estimate
from deltah.stats.columns import DEAD_BAND_PREFIX, LABEL_MEANING, LABEL_SOURCE, SIGNAL_MEANING
from deltah.stats.figures import REDUCTION, Failure, FailureKind
from deltah.stats.table import CALL_INDEX
from deltah.stats.tables import MISSING, Cell, estimate_cell, number, tool_title
from deltah.text_format import count

if TYPE_CHECKING:
    from deltah.stats.study import StudyResult

COLUMNS: Final = (
    ("auc", "AUC"),
    ("auc_within_index", "AUC within call index"),
    ("auc_stratified", "AUC within index, tool, length"),
    ("spearman", "Spearman"),
    ("partial_spearman", "partial Spearman"),
    ("point_biserial", "point-biserial"),
    ("partial_point_biserial", "partial point-biserial"),
)
"""Statistics in the order they are shown, with their titles."""
TESTS: Final = (
    ("p", "p"),
    ("p_holm", "p, Holm"),
    ("p_partial", "partial p"),
    ("p_partial_holm", "partial p, Holm"),
)
SIGNIFICANT: Final = 0.05
"""Corrected p-value up to which a finding is stated."""
FAILURE_TITLES: Final = {
    FailureKind.FELL_AND_WRONG: "Entropy fell and the answer was wrong",
    FailureKind.ROSE_AND_RIGHT: "Entropy rose and the answer was right",
}
MADE_OF: Final = frozenset({("gold_gain", "useful")})
"""Signal and label that are made of the same numbers: their association is no finding."""
DIGITS: Final = 3


def cells(a: Association, digits: int = DIGITS) -> tuple[Cell, ...]:
    """One cell a statistic of `COLUMNS`, then one a test of `TESTS`."""
    statistics = (estimate_cell(getattr(a, name), digits, signed=not name.startswith("auc")) for name, _ in COLUMNS)
    tests = (Cell(text=p_text(getattr(a, name))) for name, _ in TESTS)
    return (*statistics, *tests)


def p_text(p: float) -> str:
    """Four decimals; "–" where not tested. Never 0: the smallest possible value is 1 / (permutations + 1)."""
    return number(p, 4)


def signal_title(name: str) -> str:
    """Name of a signal, the baseline marked."""
    return f"{name} (baseline)" if name == CALL_INDEX else name


def signal_note(name: str) -> str:
    """What a signal says."""
    if name.startswith(DEAD_BAND_PREFIX):
        return f"I_k with a dead band of {name.removeprefix(DEAD_BAND_PREFIX)} nats"
    return SIGNAL_MEANING.get(name, "")


def label_note(name: str) -> str:
    """What a label says; a user's own column says itself."""
    return LABEL_MEANING.get(name, "a column of the labels file")


def result_size(result: StudyResult) -> str:
    """What the whole study rests on."""
    calls, trajectories = count(result.calls, "call"), count(result.trajectories, "trajectory")
    return f"{calls} of {trajectories}, {count(result.questions, 'question')}"


def size_note(rows: Sequence[Association]) -> str:
    """What one label's table rests on: good calls, calls, questions; one common reason where there is no number."""
    largest = max(rows, key=lambda a: a.spearman.n)
    if not largest.spearman.n:
        label = largest.label
        return f"Not computed: {LABEL_SOURCE.get(label, f'no call has a value of {label}')}."
    good = "" if largest.graded else f"{largest.good:,} good of "
    size = f"{good}{count(largest.spearman.n, 'call')}, {count(largest.questions, 'question')}."
    if computed(rows):
        return size
    reasons = dict.fromkeys(a.reason for a in rows if a.signal != CALL_INDEX)
    return f"{size} Not computed: {next(iter(reasons))}."


def computed(rows: Sequence[Association]) -> bool:
    """Whether any signal but the baseline has numbers for a label."""
    return any(a.reason is None and a.signal != CALL_INDEX for a in rows)


def finding(rows: Sequence[Association]) -> str | None:
    """What one label's table says of ΔH, of position and of the best signal; None without an AUC of ΔH."""
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
    text += f". {_beyond(reduction)}"
    others = (a for a in rows if a.reason is None and (a.signal, a.label) not in MADE_OF)
    best = next((a for a in others if a.signal not in (CALL_INDEX, REDUCTION)), None)
    if best is not None and best.auc.value > reduction.auc.value and best.auc.low > 0.5:
        calls = f" on {count(best.auc.n, 'call')}" if best.auc.n != reduction.auc.n else ""
        within = f", {_short(best.auc_within_index)} within call index" if best.auc_within_index.n else ""
        text += f" The greatest AUC is that of {best.signal}{calls}: {_short(best.auc)}{within}."
    return text


def _beyond(a: Association) -> str:
    """What the partial test leaves of a signal."""
    if a.p_partial_holm != a.p_partial_holm:
        return "Given index, tool and segment lengths nothing is left of it to test."
    p = f"p = {p_text(a.p_partial_holm)} after Holm"
    if not a.p_partial_holm <= SIGNIFICANT:
        return f"Given index, tool and segment lengths, no association is shown ({p})."
    way = "goes with good calls" if a.partial_spearman.value > 0 else "goes with calls that are not good"
    return f"Given index, tool and segment lengths, more reduction {way} ({p})."


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
        f"{result.permutations:,} standardised sign flips of whole questions; Holm's "
        f"correction over all {tests:,} tests of the study, raw and partial. The least possible p is {p_text(least)}, "
        f"{p_text(min(1.0, tests * least))} after the correction: such a value means no more than that.",
    )


def study_markdown(result: StudyResult) -> str:
    """The whole page."""
    lines = [
        "# Pilot study",
        "",
        f"{result_size(result)}.",
        "",
        *(f"- {note}" for note in (*method_notes(result), *map(escaped, result.notes))),
    ]
    for label in result.labels:
        lines += ["", *_label_section(result, label)]
    lines += ["", *_position_section(result), "", *_failure_section(result), "", *_glossary(result)]
    return "\n".join(lines) + "\n"


def _label_section(result: StudyResult, label: str) -> Iterator[str]:
    rows = result.of_label(label)
    yield f"## {escaped(label)}: {label_note(label)}"
    yield ""
    yield size_note(rows)
    if not computed(rows):
        return
    found = finding(rows)
    if found is not None:
        yield ""
        yield escaped(found)
    yield ""
    yield from _table(("signal", "n", *(title for _, title in (*COLUMNS, *TESTS))), (_row(a) for a in rows))


def _row(a: Association) -> tuple[str, ...]:
    if a.reason is not None:
        return (signal_title(a.signal), f"{a.spearman.n:,}", f"not computed: {a.reason}", *[""] * 10)
    return (signal_title(a.signal), f"{a.spearman.n:,}", *map(str, cells(a)))


def _position_section(result: StudyResult) -> Iterator[str]:
    yield "## Position"
    yield ""
    header = ("call index", "calls", "mean −ΔH, nats", *result.labels)
    rows = (
        (
            row.index,
            f"{row.n:,}",
            str(estimate_cell(row.reduction, DIGITS, signed=True)),
            *(str(estimate_cell(estimate, 2)) for estimate in row.labels.values()),
        )
        for row in result.positions
    )
    yield from _table(header, rows)


def _failure_section(result: StudyResult) -> Iterator[str]:
    yield "## Failure cases"
    for kind, title in FAILURE_TITLES.items():
        yield ""
        yield f"{title}: {count(result.failure_counts[kind], 'call')}; the clearest, one a trajectory:"
        yield ""
        listed = [f for f in result.failures if f.kind is kind]
        yield from _table(("trajectory", "call", "tool", "call index", "−ΔH, nats"), map(_failure, listed))


def _failure(f: Failure) -> tuple[str, ...]:
    return f.trajectory, f.call, tool_title(f.tool), str(f.index), number(f.reduction, DIGITS, signed=True)


def _glossary(result: StudyResult) -> Iterator[str]:
    yield "## Signals"
    yield ""
    for name in dict.fromkeys(a.signal for a in result.associations):
        yield f"- `{name}`: {signal_note(name)}"


def _table(header: Sequence[str], rows: Iterator[tuple[str, ...]] | map[tuple[str, ...]]) -> Iterator[str]:
    listed = [tuple(map(escaped, row)) for row in rows]
    if not listed:
        yield MISSING
        return
    yield "| " + " | ".join(map(escaped, header)) + " |"
    yield "|" + " --- |" * len(header)
    for row in listed:
        yield "| " + " | ".join(row) + " |"


def escaped(text: str) -> str:
    """Text that can neither break a table nor become markup."""
    plain = " ".join(text.split())
    for character in "\\`*_|<>#":
        plain = plain.replace(character, "\\" + character)
    return plain

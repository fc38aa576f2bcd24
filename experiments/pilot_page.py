"""The page docs/results/pilot.md from the numbers of docs/results/pilot.json; it computes no statistic.

Every sentence that states a finding follows from the numbers by the rules of `tells` and `verdict`, so that the page
says of another run what that run found.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from deltah.stats.columns import CALL_INDEX, PROBE_SIGNALS, signal_note
from deltah.stats.study_text import MADE_OF, SIGNIFICANT, label_note
from deltah.text_format import MISSING, number

POOLED = "pooled"
OWN_LABELS = {
    "needed": "the call is the first to return a value of the question's plan that the agent has not learned by heart",
    "needed_probed": "the same, of the probed calls alone: here all signals have the same calls",
    "not_redundant": "no duplicate, no result that stood in the context already, no repeated error, by the rule of "
    "release 0.2",
}
ORDER = (
    *("delta_h", "reduced", "reduced_0.05", "reduced_0.10", "ratio", "tail", "position_corrected", "cumulative"),
    *("entropy_before", "placebo_controlled", "gold_gain"),
)
"""Of the signals where they are listed one by one."""
NAMES = {
    "call_index": "the call index alone",
    "delta_h": "−ΔH",
    "reduced": "the paper's bare sign",
    "reduced_0.10": "the sign with a dead band of 0.10 nats",
    "entropy_before": "the entropy before the call, which knows no result,",
    "position_corrected": "position-corrected −ΔH",
    "placebo_controlled": "placebo-controlled −ΔH",
    "gold_gain": "the gold-answer gain, which needs the answer,",
}
FEW = 50
"""Calls in the smaller class of a label below which a reader is warned."""
PROBED = frozenset(PROBE_SIGNALS)
GROUP_TITLES = (
    ("gain_placebo", "gain over placebo"),
    ("gain_none", "gain over none"),
    ("useful", "useful"),
    ("beats_placebo", "beats placebo"),
    ("beats_none", "beats none"),
    ("delta_h_placebo", "ΔH less placebo's"),
    ("delta_h_none", "ΔH less none's"),
)
SHARES = frozenset({"useful", "beats_placebo", "beats_none"})
Row = dict[str, Any]


def page(content: dict[str, Any]) -> str:
    """The whole page."""
    pooled = content["study"][POOLED]
    labels = list(dict.fromkeys(row["label"] for row in pooled))
    lines = [
        "# Pilot study and probe on the embedded agent",
        "",
        *head(content["facts"]),
        "## Findings",
        "",
        *findings(content["pairs"]),
        "",
        "## What each signal tells",
        "",
        *overview(pooled, labels),
        "",
        "## By label",
        "",
        *best_table(pooled, labels),
    ]
    for label in labels:
        lines += ["", *label_section(content, label)]
    lines += ["", "## Signals against each other", "", *pair_tables(content["pairs"])]
    lines += ["", "## Position", "", *position_table(content["positions"], labels)]
    lines += ["", "## Probe", "", *probe_section(content)]
    lines += ["", "## Claims made on seed 0, tested on the others", "", *claim_table(content)]
    return "\n".join(lines) + "\n"


def head(facts: Row) -> Iterator[str]:
    """What was run, on what, and how to read it."""
    size = facts["sizes"][POOLED]
    probed = shlex.join(next(c for c in facts["commands"] if c[0] == "probe")).split("--max-calls ")[1].split()[0]
    yield (
        f"Made by `{facts['command']}` on {facts['date']}, {facts['machine']}; raw numbers in "
        f"[pilot.json](pilot.json). {len(facts['seeds'])} seeds, each another world, other questions, another seed of "
        f"sampling and probe: {size['calls']:,} calls of {size['trajectories']:,} trajectories with a call, "
        f"{size['questions']:,} questions; {facts['samples']} trajectories of each of 200 held-out questions a seed at "
        f"temperature 1, {probed} calls of each seed probed. The agent is the shipped one: the seeds vary everything "
        "but the model."
    )
    yield ""
    yield "What the script runs, here for seed 0; the labels file it writes itself, from the world's plans:"
    yield ""
    yield "```sh"
    for command in facts["commands"]:
        yield shlex.join(command if command[0] == "python" else ["deltah", *command])
    yield "```"
    yield ""
    yield (
        f"Brackets are 95 % intervals, bootstrap over questions, {facts['resamples']:,} resamples, those of AUCs on "
        "the scale of log odds, not corrected for their number. p: two-sided, of ranks, "
        f"{facts['permutations']:,} standardised sign flips of whole questions, after Holm over all "
        f"{facts['tests']} tests; {number(facts['tests'] / (facts['permutations'] + 1), 4)} is the least possible. The "
        "partial p is given call index, tool and log segment lengths. Signals are turned so that greater "
        "means more reduction, or more evidence of a good call. The AUC of the call index alone is the baseline; the "
        "AUC within call index is what a signal knows beyond position."
    )
    yield ""
    yield (
        "Limits: one agent of a million parameters, whose habit of saying a guess aloud creates much of the signal "
        "([lab.md](../lab.md)). Questions about what it knows by heart recur: "
        f"{facts['texts']} different texts in {200 * len(facts['seeds'])} questions."
    )
    yield ""


def tells(row: Row) -> str:
    """What a pair shows beyond position: "yes", "reversed", "no", or "untested"."""
    within = row.get("auc_within_index", [None] * 4)
    if within[1] is None or row["p_partial_holm"] is None:
        return "untested"
    if row["p_partial_holm"] > SIGNIFICANT or within[1] <= 0.5 <= within[2]:
        return "no"
    return "yes" if within[1] > 0.5 else "reversed"


def findings(pairs: Sequence[Row]) -> Iterator[str]:
    """One sentence a pair of signals: for which labels the first is better, and for which worse."""
    yield (
        "Signals against the call index alone by their AUC, against each other by their AUC within call index; "
        "*better* and *worse* where the interval of the difference excludes 0. The better of two may tell nothing: see "
        "below."
    )
    yield ""
    for first, second in dict.fromkeys((row["first"], row["second"]) for row in pairs):
        key = "auc" if second == CALL_INDEX else "auc_within_index"
        sets: dict[str, list[str]] = {"better for": [], "worse for": [], "no difference shown for": []}
        for row in pairs:
            if (
                (row["first"], row["second"]) == (first, second)
                and row["label"] != "needed_probed"
                and row[key][1] is not None
            ):
                found = f"{row['label']}{by_construction(first, row['label'])}"
                sets[side(row[key])].append(f"{found} ({number(row[key][0], 2, signed=True)})")
        said = "; ".join(f"{phrase} {', '.join(labels)}" for phrase, labels in sets.items() if labels)
        name = NAMES[first]
        yield f"- **{name[0].upper()}{name[1:]} against {NAMES[second]}**: {said}."


def side(difference: Sequence[float]) -> str:
    _, low, high = difference
    if low <= 0 <= high:
        return "no difference shown for"
    return "better for" if low > 0 else "worse for"


def by_construction(signal: str, label: str) -> str:
    return " by construction" if (signal, label) in MADE_OF else ""


def overview(rows: Sequence[Row], labels: Sequence[str]) -> Iterator[str]:
    """One sentence a signal."""
    few = [f"`{label}` rests on {n} calls of one kind. " for label in labels if (n := smaller(rows, label)) < FEW]
    yield (
        "A signal *tells* a label where its AUC within call index is above 0.5 with its whole interval and its partial "
        f"p after Holm is at most {SIGNIFICANT}; it is *reversed* where the same holds below 0.5. {''.join(few)}The "
        "number is the AUC within call index, all seeds."
    )
    yield ""
    for signal in ORDER:
        mine = {row["label"]: row for row in rows if row["signal"] == signal and row["label"] != "needed_probed"}
        parts = []
        for outcome, phrase in (("yes", "tells"), ("reversed", "is reversed for"), ("no", "does not tell")):
            found = [named(mine[label]) for label in labels if label in mine and tells(mine[label]) == outcome]
            if found:
                parts.append(f"{phrase} {', '.join(found)}")
        yield f"- `{signal}` ({signal_note(signal)}): {'; '.join(parts)}."


def smaller(rows: Sequence[Row], label: str) -> int:
    """Calls of the smaller class of a label, where ΔH is known."""
    row = next(row for row in rows if row["label"] == label and row["signal"] == "delta_h")
    return min(row["good"], row["n"] - row["good"])


def named(row: Row) -> str:
    return f"{row['label']}{by_construction(row['signal'], row['label'])} ({number(row['auc_within_index'][0], 2)})"


def best_table(rows: Sequence[Row], labels: Sequence[str]) -> Iterator[str]:
    """For each label: the baseline, the paper's signal and sign, and the best signal of those known for all calls."""
    header = ("label", "good / calls", "call index alone", "−ΔH", "bare sign", "best signal without a probe")
    yield "AUC with its interval, then the same within call index."
    yield ""
    yield from table(header, (best_row(rows, label) for label in labels))


def best_row(rows: Sequence[Row], label: str) -> tuple[str, ...]:
    mine = {row["signal"]: row for row in rows if row["label"] == label}
    own = mine["delta_h"]
    if "reason" in own:
        return (f"`{label}`", f"{own['good']:,} / {own['n']:,}", f"not computed: {own['reason']}", *[""] * 3)
    free = [r for name, r in mine.items() if name != CALL_INDEX and name not in PROBED and "reason" not in r]
    best = max(free, key=lambda row: row["auc_within_index"][0] or 0.0)
    return (
        f"`{label}`",
        f"{own['good']:,} / {own['n']:,}",
        interval(mine[CALL_INDEX]["auc"]),
        both(own),
        both(mine["reduced"]),
        f"`{best['signal']}` {both(best)}",
    )


def both(row: Row) -> str:
    return f"{interval(row['auc'])}; {interval(row['auc_within_index'])}"


def label_section(content: Row, label: str) -> Iterator[str]:
    """All signals against one label, the best AUC first."""
    rows = [row for row in content["study"][POOLED] if row["label"] == label]
    largest = max(rows, key=lambda row: row["n"])
    yield f"### `{label}`"
    yield ""
    note = OWN_LABELS.get(label) or label_note(label)
    yield f"{note[0].upper()}{note[1:]}. {largest['good']:,} good of {largest['n']:,} calls."
    yield ""
    seeds = [str(seed) for seed in content["facts"]["seeds"]]
    header = ("signal", "n", "AUC", "within call index", f"seeds {', '.join(seeds)}", "within index, tool, length")
    yield from table(
        (*header, "partial Spearman", "p", "partial p"), (signal_row(content["study"], row, seeds) for row in rows)
    )
    if label == "useful":
        yield ""
        yield from bare_note(content["answer_alone"])


def signal_row(study: Row, row: Row, seeds: Sequence[str]) -> tuple[str, ...]:
    head = (f"`{row['signal']}`" if row["signal"] != CALL_INDEX else f"{CALL_INDEX} (baseline)", f"{row['n']:,}")
    if "reason" in row:
        return (*head, f"not computed: {row['reason']}", *[""] * 6)
    return (
        *head,
        interval(row["auc"]),
        interval(row["auc_within_index"]),
        ", ".join(of_seed(study[seed], row) for seed in seeds),
        interval(row["auc_stratified"]),
        interval(row["partial_spearman"], signed=True),
        number(row["p_holm"], 4),
        number(row["p_partial_holm"], 4),
    )


def of_seed(rows: Iterable[Row], pooled: Row) -> str:
    """The AUC within call index in one seed; of the baseline, the AUC."""
    key = "auc" if pooled["signal"] == CALL_INDEX else "auc_within_index"
    same = (row for row in rows if (row["signal"], row["label"]) == (pooled["signal"], pooled["label"]))
    return next((number(row[key][0], 2) for row in same if key in row), MISSING)


def bare_note(rows: Sequence[Row]) -> Iterator[str]:
    """The same label where the answer is elicited without a sentence."""
    yield "With the answer alone, the probe's default form, on the same calls:"
    yield ""
    header = ("label", "signal", "n", "AUC", "within call index", "partial p")
    shown = (row for row in rows if "reason" not in row)
    yield from table(header, (bare_row(row) for row in shown))


def bare_row(row: Row) -> tuple[str, ...]:
    aucs = (interval(row[key]) for key in ("auc", "auc_within_index"))
    return (f"`{row['label']}`", f"`{row['signal']}`", f"{row['n']:,}", *aucs, number(row["p_partial_holm"], 4))


def pair_tables(pairs: Sequence[Row]) -> Iterator[str]:
    """Differences of AUCs, one table of the AUC and one of that within call index."""
    labels = list(dict.fromkeys(row["label"] for row in pairs))
    yield (
        "First signal less second, on the calls for which both are known, resampled together. A difference whose "
        "interval contains 0 is not shown."
    )
    for key, title in (("auc", "AUC"), ("auc_within_index", "AUC within call index")):
        yield ""
        yield f"{title}:"
        yield ""
        names = dict.fromkeys((row["first"], row["second"]) for row in pairs)
        cells = {(row["first"], row["second"], row["label"]): row[key] for row in pairs}
        shown = [(a, b) for a, b in names if key == "auc" or b != CALL_INDEX]
        rows = (
            (f"`{a}` − `{b}`", *(interval(cells.get((a, b, label)), signed=True) for label in labels)) for a, b in shown
        )
        yield from table(("first less second", *(f"`{label}`" for label in labels)), rows)


def position_table(rows: Sequence[Row], labels: Sequence[str]) -> Iterator[str]:
    yield "Mean −ΔH in nats and share of good calls, by call index, all seeds."
    yield ""
    yield from table(
        ("call index", "calls", "−ΔH", *(f"`{label}`" for label in labels)),
        (
            (
                row["index"],
                f"{row['n']:,}",
                interval(row["reduction"], signed=True),
                *(interval(row[label]) for label in labels),
            )
            for row in rows
        ),
    )


def probe_section(content: Row) -> Iterator[str]:
    """Group tables of each form: pooled with intervals, then the seeds' own values."""
    rows, seeds = content["probe"], [str(seed) for seed in content["facts"]["seeds"]]
    yield (
        "What the result did, by group of calls: means with intervals over questions. Gains in nats of the gold "
        "answer's log-probability, ΔH in nats (negative: more certain after the real result than after the control), "
        "the others shares of calls. In brackets behind: the seeds' own values."
    )
    for form in dict.fromkeys(row["form"] for row in rows):
        yield ""
        yield f"Form `{form}`:"
        yield ""
        by_scope = {(row["scope"], row["group"]): row for row in rows if row["form"] == form}
        groups = dict.fromkeys(row["group"] for row in rows)
        yield from table(
            ("calls", "n", *(title for _, title in GROUP_TITLES)),
            (group_row(group, by_scope, seeds) for group in groups),
        )


def group_row(group: str, by_scope: dict[tuple[str, str], Row], seeds: Sequence[str]) -> tuple[str, ...]:
    pooled, own = by_scope[POOLED, group], [by_scope[seed, group] for seed in seeds]
    cells = []
    for column, _ in GROUP_TITLES:
        digits, signed = digits_of(column), column not in SHARES
        values = ", ".join(number(row[column][0], digits, signed=signed) for row in own)
        cells.append(f"{interval(pooled[column], digits, signed=signed)} ({values})")
    return (group, f"{pooled['n']} ({', '.join(str(row['n']) for row in own)})", *cells)


def digits_of(column: str) -> int:
    """Entropy differences are small."""
    return 3 if column.startswith("delta_h") else 2


def claim_table(content: Row) -> Iterator[str]:
    """What the first, exploratory probe said, and whether the seeds it never saw agree."""
    explored = str(content["facts"]["explored_seed"])
    fresh = [str(seed) for seed in content["facts"]["seeds"] if str(seed) != explored]
    yield (
        f"The claims were made on 150 calls of 60 questions of seed {explored} and written down before the other seeds "
        f"were run. Differences of means. *Confirmed*: the interval over seeds {' and '.join(fresh)} lies wholly on "
        "the claimed side of 0. A claim of no difference is *refuted* if that interval excludes 0, and cannot be "
        "confirmed: the interval says how large a difference is left."
    )
    yield ""
    header = ("claim", "column", f"seeds {' and '.join(fresh)}", f"each of {', '.join((explored, *fresh))}", "verdict")
    yield from table(header, (claim_row(row, explored, fresh) for row in content["claims"]))


def claim_row(row: Row, explored: str, fresh: Sequence[str]) -> tuple[str, ...]:
    found, digits = row["differences"], digits_of(row["column"])
    values = ", ".join(number(found[seed][0], digits, signed=True) for seed in (explored, *fresh))
    return row["text"], f"`{row['column']}`", interval(found["fresh"], digits, signed=True), values, waste_level(row)


def waste_level(row: Row) -> str:
    _, low, high = row["differences"]["fresh"]
    if low is None:
        return "untested"
    if row["sign"] == 0:
        return "**refuted**" if low > 0 or high < 0 else "no difference shown"
    if low > 0 or high < 0:
        return "**confirmed**" if (low > 0) == (row["sign"] > 0) else "**refuted**"
    return "not confirmed"


def interval(numbers: Sequence[float | None] | None, digits: int = 2, *, signed: bool = False) -> str:
    """Value and interval."""
    if numbers is None or numbers[0] is None:
        return MISSING
    value, low, high = (number(x, digits, signed=signed) for x in numbers[:3])
    return value if MISSING in (low, high) else f"{value} [{low}, {high}]"


def table(header: Sequence[str], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + " --- |" * len(header)
    for row in rows:
        yield "| " + " | ".join(row) + " |"

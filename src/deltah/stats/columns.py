"""The study's table: one row per call, what every signal said of it and what is known of its quality.

**Greater means more entropy reduction, or more evidence that the call was good**: signals are the entries of
`deltah.SIGNALS` times -1, the verdict I_k with several dead bands, and what a probe measured. Labels are 1 for good and
0 for not good, or a user's number. NaN is "not known". A signal that is fitted first is cross-fitted: each half of the
questions by the other, so that no call's own ΔH is subtracted from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np

from deltah.calls.table import CallTable, score_measured
from deltah.core.registry import Entry
from deltah.core.segments import SegmentEntropies
from deltah.core.signals import SIGNALS, Signal, SignalConfig, SignalFunction, evaluate, score
from deltah.core.types import BoolArray, FloatArray, IntArray, Trajectory
from deltah.errors import InvalidValueError
from deltah.stats.labels import LABELS, CallKey, CallValues, Evidence, evidence_labels, given_values, own_names

REDUCTION: Final = "delta_h"
"""The method's signal: -ΔH in the study."""
CALL_INDEX: Final = "call_index"
"""Name of the baseline that knows nothing but the position of a call."""
MARGINS_NATS: Final = (0.0, 0.05, 0.10)
"""Dead bands under which the verdict I_k is studied."""
PROBE_SIGNALS: Final[Mapping[str, tuple[str, float]]] = {
    "placebo_controlled": ("delta_h_placebo", -1.0),
    "gold_gain": ("gain_none", 1.0),
}
"""Signals that a probe measured: its column, and the sign that turns it."""
PROBE_COLUMNS: Final = frozenset({"useful", *(column for column, _ in PROBE_SIGNALS.values())})
_MEANING: Final = {
    "reduced": "I_k: 1 if ΔH_k < 0 is certain, 0 if ΔH_k >= 0 is",
    **{f"reduced_{m:.2f}": f"I_k with a dead band of {m:.2f} nats" for m in MARGINS_NATS[1:]},
    "placebo_controlled": "H(r_k) after an unrelated result less H(r_k) after the real one, nats, from the same state",
    "gold_gain": "log-probability of the gold answer after the real result less that without one, nats; `useful` is "
    "made of the same numbers",
    CALL_INDEX: "-k: earlier is greater; baseline that knows nothing but the position",
}
"""Of the signals that are the study's own."""


def signal_note(name: str) -> str:
    """What a signal of the study says; the name may come from a file, so it is never imported."""
    if name in SIGNALS:
        return f"−1 × {SIGNALS[name].with_unit}: {SIGNALS[name].meaning}"
    return _MEANING.get(name, "a signal of the user's own")


@dataclass(frozen=True, kw_only=True)
class StudyTable:
    """N calls, columnar.

    Raises:
        InvalidValueError: if a column has another length.
    """

    cluster: IntArray
    """(N,) number of the question a call belongs to, 0 ... Q - 1."""
    index: IntArray
    """(N,) k, the index of the call's round, counted from 1."""
    tokens: IntArray
    """(N, 2) pooled tokens of r_(k-1) and r_k."""
    tool: IntArray
    """(N,) positions in `tools`."""
    tools: tuple[str, ...]
    calls: tuple[CallKey, ...]
    """(N,)"""
    signals: Mapping[str, FloatArray]
    """(N,) each; greater means more entropy reduction or more evidence; NaN where undefined."""
    labels: Mapping[str, FloatArray]
    """(N,) each; 1 good, 0 not, or a graded number; NaN where unknown."""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        columns = {"cluster": self.cluster, "index": self.index, "tool": self.tool, **self.signals, **self.labels}
        for name, column in columns.items():
            if column.shape != (len(self),):
                raise InvalidValueError(f"column {name!r} has shape {column.shape}; the table has {len(self)} calls")

    def __len__(self) -> int:
        """N."""
        return len(self.calls)

    @property
    def n_clusters(self) -> int:
        """Q: questions that have a call."""
        return int(self.cluster.max()) + 1

    def with_baseline(self) -> dict[str, FloatArray]:
        """All signals and, last, the call index times -1."""
        return {**self.signals, CALL_INDEX: -self.index.astype(np.float64)}


def is_binary(label: FloatArray) -> bool:
    """Whether a label's known values are 0 and 1 only."""
    return bool(np.isin(label[known(label)], (0.0, 1.0)).all())


def known(column: FloatArray) -> BoolArray:
    """(N,) where a column has a value."""
    return np.asarray(~np.isnan(column))


_OWN: Final = ", ".join(f"({label.sql})::DOUBLE AS {name}" for name, label in LABELS.items() if label.sql)
_QUERY: Final = f"""
    SELECT trajectory, call, tool, round, coalesce(tokens_before, 0) AS before, coalesce(tokens_after, 0) AS after,
        dense_rank() OVER (ORDER BY first_key) - 1 AS cluster, key, {_OWN}
    FROM (SELECT *, min(key) OVER (PARTITION BY cluster) AS first_key FROM calls) ORDER BY key, index
"""


def build_table(
    trajectories: Iterable[Trajectory],
    *,
    signals: Sequence[str] = (),
    evidence: Evidence | None = None,
    probe: CallValues | None = None,
    columns: CallValues | None = None,
    seed: int = 0,
    calls: CallTable | None = None,
) -> StudyTable:
    """Make the table of all calls.

    Args:
        trajectories: Read once and not kept; those without entropies have undefined signals.
        signals: Further signals than those of the registry, as `package.module:function`.
        evidence: Supporting documents, for the labels `gold_evidence` and `new_evidence`.
        probe: Values of `PROBE_COLUMNS`; others are ignored.
        columns: A user's labels.
        seed: Of the halves between which a fitted signal is cross-fitted.
        calls: Table that holds the ΔH of every trajectory once it was given; made here when not given.

    Raises:
        InvalidValueError: if there is no call, a user's column has a name of `LABELS`, or no row of `probe` or
            `columns` belongs to a call.
    """
    table = CallTable() if calls is None else calls
    entries = {name: SIGNALS.resolve(name) for name in (*SIGNALS, *signals)}
    parts = list(_parts(trajectories, entries, evidence, table if calls is None else None))
    if not parts:
        raise InvalidValueError("the traces hold no tool call; a study needs calls")
    rows: dict[str, Any] = table.sql(_QUERY).fetchnumpy()
    rows = {n: np.ma.filled(c, np.nan) if c.dtype == np.float64 else np.asarray(c) for n, c in rows.items()}
    keys = tuple(zip(rows["trajectory"], rows["call"], strict=True))
    found, notes = _all_signals(entries, parts, rows, seed), list[str]()
    if evidence is not None:
        rows |= evidence_labels(rows["tool"], np.concatenate([held for *_, held in parts]))
        notes += evidence.notes(rows["gold_evidence"])
    if len(set(keys)) < len(keys):
        notes.append("Some trajectories share an id: a value from a file counts for each of them.")
    if probe is not None:
        given, _ = given_values(keys, probe, PROBE_COLUMNS, "the probe")
        found |= {name: sign * given[column] for name, (column, sign) in PROBE_SIGNALS.items() if column in given}
        rows |= given
    labels = {name: rows[name] for name in LABELS if name in rows}
    if columns is not None:
        given, unmatched = given_values(keys, columns, own_names(columns), "the labels")
        labels, notes = labels | given, [*notes, *unmatched]
    tools, tool = np.unique(rows["tool"], return_inverse=True)
    return StudyTable(
        cluster=rows["cluster"],
        index=rows["round"],
        tokens=np.stack([rows["before"], rows["after"]], axis=1),
        tool=tool,
        tools=tuple(tools.tolist()),
        calls=keys,
        signals=found,
        labels=labels,
        notes=tuple(notes),
    )


_Part: TypeAlias = tuple[dict[str, FloatArray], dict[str, Signal | None], FloatArray]
"""Of a trajectory: (C,) signals, ΔH for each signal that is fitted first, and (C, 2) what `Evidence.found` gives."""


def _parts(
    trajectories: Iterable[Trajectory],
    entries: Mapping[str, Entry[SignalFunction]],
    evidence: Evidence | None,
    calls: CallTable | None,
) -> Iterator[_Part]:
    """Parts of trajectories with calls; adds all to a table of calls, where one is given."""
    options = {name: entry.options for name, entry in entries.items()}
    fitted = {name: SignalConfig(pool=o.get("pool", "reasoning")) for name, o in options.items() if "fit" in o}
    plain = {name: SignalConfig(name=name) for name in entries if name not in fitted}
    for t in trajectories:
        base = score_measured(t, plain[REDUCTION])
        if calls is not None:
            calls.add(t, base)
        if not t.n_calls:
            continue
        nothing = np.full(t.n_calls, np.nan)
        found = {name: nothing if base is None else _turned(score(t, c).call_value) for name, c in plain.items()}
        lower, upper = (nothing, nothing) if base is None else (base.call_lower, base.call_upper)
        for margin in MARGINS_NATS:
            verdict = np.where(upper < -margin, 1.0, np.where(lower >= -margin, 0.0, np.nan))
            found[f"reduced_{margin:.2f}" if margin else "reduced"] = verdict
        unfitted = {name: score_measured(t, config) for name, config in fitted.items()}
        yield found, unfitted, np.empty((0, 2)) if evidence is None else evidence.found(t)


def _turned(values: FloatArray) -> FloatArray:
    return np.where(np.isfinite(values), -values, np.nan)


def _all_signals(
    entries: Mapping[str, Entry[SignalFunction]], parts: Sequence[_Part], rows: Mapping[str, Any], seed: int
) -> dict[str, FloatArray]:
    """(N,) signals that need no file, in the order of the registry, then the verdicts."""
    first = np.random.default_rng(seed).permutation(int(rows["cluster"].max()) + 1) % 2 == 0
    half = first[rows["cluster"]][np.unique(rows["key"], return_index=True)[1]]
    found = {name: np.concatenate([signals[name] for signals, *_ in parts]) for name in parts[0][0]}
    found |= {name: _cross_fitted(entries[name], name, parts, half) for name in parts[0][1]}
    return {name: found[name] for name in dict.fromkeys((*entries, *found))}


def _cross_fitted(entry: Entry[SignalFunction], name: str, parts: Sequence[_Part], side: BoolArray) -> FloatArray:
    """(N,) a signal fitted on the other half of the questions; NaN where that half has no ΔH."""
    scored = [unfitted[name] for _, unfitted, _ in parts]
    values = [np.full_like(signals["reduced"], np.nan) for signals, *_ in parts]
    for half in (True, False):
        others = [s for s, own in zip(scored, side, strict=True) if s is not None and own != half]
        if not any(np.isfinite(s.value).any() for s in others):
            continue
        fit = entry.options["fit"].fit(others)
        for i in np.flatnonzero(side == half).tolist():
            if (s := scored[i]) is not None:
                h = SegmentEntropies(s.segment_entropy, s.segment_lower, s.segment_upper, s.segment_tokens)
                point = np.where(np.isnan(s.value), np.nan, evaluate(entry, h, fit).point)
                values[i] = _turned(replace(s, value=point).call_value)
    return np.concatenate(values)

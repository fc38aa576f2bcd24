"""Columns of the study's table from trajectories: every signal, and every quality label that is known.

Signals, all turned so that greater means more entropy reduction or more evidence (`SIGNAL_MEANING`): every entry of
`deltah.SIGNALS`, negated; the method's verdict I_k, bare and with dead bands; and what a probe measured.
The position-corrected signal is cross-fitted: questions are cut into halves by a seed, the expectation of each half is
fitted on the other, so that no call's own ΔH enters what is subtracted from it.

Labels (`LABEL_MEANING`): outcome, execution, gold evidence, redundancy, counterfactual usefulness, a user's columns.
Nothing that makes an agent or a reward reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, TypeAlias

import numpy as np

from deltah.calls.scored import cluster_key, is_correct
from deltah.core.signal_types import Signal, Verdict
from deltah.core.signals import SIGNALS, SignalConfig, score
from deltah.core.types import CallStatus, FloatArray, IntArray, Trajectory
from deltah.errors import InvalidValueError
from deltah.stats.evidence import Evidence
from deltah.stats.sources import CallValues
from deltah.stats.table import CallReference, StudyTable
from deltah.text_format import agreeing, count

WasteRule: TypeAlias = Callable[[Trajectory], Sequence[AbstractSet[str]]]
"""Waste classes of each call of a trajectory, (C,) sets of names."""

MARGINS_NATS: Final = (0.0, 0.05, 0.10)
"""Dead bands under which the verdict I_k is studied; 0 is the method's own."""
DEAD_BAND_PREFIX: Final = "reduced_"
"""Before the nats of a dead band, in the name of the verdict under it."""
HINTS: Final = frozenset({"result_unused"})
"""Waste classes that are hints and make no call redundant."""
SIGNAL_MEANING: Final[Mapping[str, str]] = {
    "delta_h": "-ΔH_k = H(r_{k-1}) - H(r_k), nats: the method's signal",
    "ratio": "-ΔH_k / (H(r_{k-1}) + 1e-8)",
    "position_corrected": "-(ΔH_k - expected ΔH at its index and length), nats; expectation fitted on other questions",
    "tail": "-ΔH_k over the last 8 tokens of each segment, nats",
    "entropy_before": "H(r_{k-1}), nats: how uncertain the model was when it called; knows no result",
    "cumulative": "H(r_0) - H(r_k), nats",
    "reduced": "I_k: 1 if ΔH_k < 0 is certain, 0 if ΔH_k >= 0 is",
    "placebo_controlled": "H(r_k) after an unrelated result less H(r_k) after the real one, nats, from the same state",
    "gold_gain": "log-probability of the gold answer after the real result less that without one, nats; `useful` is "
    "made of the same numbers",
    "call_index": "-k: earlier is greater; baseline that knows nothing but the position",
}
LABEL_MEANING: Final[Mapping[str, str]] = {
    "correct": "the trajectory's outcome is 1, the same for all its calls",
    "executed": "the tool answered without an error",
    "gold_evidence": "the result holds a supporting document of the task",
    "new_evidence": "the result holds a supporting document that no earlier call of the trajectory returned",
    "not_redundant": "no duplicate, no result that stood in the context already, no repeated error",
    "useful": "counterfactual, probed calls only: the real result made the gold answer more than twice as likely (gain "
    "above log 2) as no result does, and as an unrelated one does",
}
_NO_EVIDENCE: Final = "no result holds a supporting document; give the --tasks and the --corpus of these trajectories"
LABEL_SOURCE: Final[Mapping[str, str]] = {
    "correct": "no trajectory is graded; give a task file that holds their questions with --tasks, or log an outcome",
    "gold_evidence": _NO_EVIDENCE,
    "new_evidence": _NO_EVIDENCE,
}
"""What is missing where no call has a label, and which option gives it."""
PROBE_SIGNALS: Final[Mapping[str, tuple[str, float]]] = {
    "delta_h_placebo": ("placebo_controlled", -1.0),
    "gain_none": ("gold_gain", 1.0),
}
"""Columns of a probe that are signals: name here, and the sign that turns them (entropy differences come as ΔH)."""
PROBE_LABELS: Final = ("useful",)
PROBE_COLUMNS: Final = frozenset({*PROBE_SIGNALS, *PROBE_LABELS})
"""All that the study reads of a probe."""


def build_table(
    trajectories: Iterable[Trajectory],
    *,
    evidence: Evidence | None = None,
    waste: WasteRule | None = None,
    probe: CallValues | None = None,
    columns: CallValues | None = None,
    cluster: str = "task_id",
    seed: int = 0,
) -> StudyTable:
    """Make the table of all calls.

    Args:
        trajectories: Any number; those without calls add nothing, those without entropies have undefined signals.
        evidence: Supporting documents, for the labels `gold_evidence` and `new_evidence`.
        waste: Names the waste classes of a trajectory's calls, for the label `not_redundant`.
        probe: Values of `PROBE_COLUMNS`; others are ignored.
        columns: A user's labels.
        cluster: Metadata key that names the question, see `deltah.stats.summary.cluster_key`.
        seed: Of the halves between which the position-corrected signal is cross-fitted.

    Raises:
        InvalidValueError: if there is no call, a user's column has a name of `LABEL_MEANING`, or no row of `probe` or
            `columns` belongs to a call.
    """
    listed = [t for t in trajectories if t.n_calls]
    if not listed:
        raise InvalidValueError("the traces hold no tool call; a study needs calls")
    calls = tuple(CallReference(t.id, call.id) for t in listed for call in t.calls)
    names = [call.name for t in listed for call in t.calls]
    tools = tuple(sorted(set(names)))
    of_trajectory = _codes([cluster_key(t, cluster) for t in listed])
    base = _score_all(listed, SignalConfig())
    signals = _signals(listed, base, of_trajectory, seed)
    labels, notes = _labels(listed, evidence, waste)
    if len(set(calls)) < len(calls):
        notes.append("some trajectories share an id: a value from a file counts for each of them")
    if probe is not None:
        _check_matched(calls, probe, "the probe")
        for column, (name, sign) in PROBE_SIGNALS.items():
            for values in _given(calls, probe, [column]).values():
                signals[name] = sign * values
        labels |= _given(calls, probe, PROBE_LABELS)
    if columns is not None:
        notes += _check_matched(calls, columns, "the labels")
        labels |= _user_labels(calls, columns)
    position = {name: i for i, name in enumerate(tools)}
    return StudyTable(
        cluster=np.repeat(of_trajectory, [t.n_calls for t in listed]),
        index=np.concatenate([t.round_of_call + 1 for t in listed]),
        tokens=np.concatenate([_tokens(t, s) for t, s in zip(listed, base, strict=True)]),
        tool=np.array([position[name] for name in names]),
        tools=tools,
        calls=calls,
        signals=signals,
        labels=labels,
        notes=tuple(notes),
    )


def _codes(keys: Sequence[object]) -> IntArray:
    """Numbers of keys in order of first appearance."""
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.array([number[key] for key in keys], dtype=np.int64)


def _score_all(trajectories: Sequence[Trajectory], config: SignalConfig) -> list[Signal | None]:
    return [None if t.entropy is None else score(t, config) for t in trajectories]


def _tokens(trajectory: Trajectory, signal: Signal | None) -> IntArray:
    """(C, 2) pooled tokens on both sides of each call; 0 where nothing was measured."""
    if signal is None:
        return np.zeros((trajectory.n_calls, 2), dtype=np.int64)
    k = signal.round_of_call
    return np.stack([signal.segment_tokens[k], signal.segment_tokens[k + 1]], axis=1)


def _signals(
    trajectories: Sequence[Trajectory], base: Sequence[Signal | None], clusters: IntArray, seed: int
) -> dict[str, FloatArray]:
    """Every signal that needs nothing but the trajectories, turned."""
    found = {}
    for name, entry in SIGNALS.items():
        if "fit" in entry.options:
            found[name] = _cross_fitted(name, trajectories, base, clusters, seed)
        else:
            found[name] = _turned(trajectories, _score_all(trajectories, SignalConfig(name=name)))
    for margin in MARGINS_NATS:
        scored = _score_all(trajectories, SignalConfig(margin=margin))
        found["reduced" if margin == 0 else f"{DEAD_BAND_PREFIX}{margin:.2f}"] = _verdicts(trajectories, scored)
    return found


def _turned(trajectories: Sequence[Trajectory], signals: Sequence[Signal | None]) -> FloatArray:
    """(N,) minus the signal of each call's round."""
    parts = [
        np.full(t.n_calls, np.nan) if s is None else -s.call_value for t, s in zip(trajectories, signals, strict=True)
    ]
    values = np.concatenate(parts)
    return np.where(np.isfinite(values), values, np.nan)


def _verdicts(trajectories: Sequence[Trajectory], signals: Sequence[Signal | None]) -> FloatArray:
    """(N,) I_k where it is certain; NaN where the interval leaves it open or there is no ΔH."""
    value = {Verdict.REDUCED: 1.0, Verdict.NOT_REDUCED: 0.0}
    parts = [
        np.full(t.n_calls, np.nan) if s is None else np.array([value.get(label, np.nan) for label in s.call_verdicts])
        for t, s in zip(trajectories, signals, strict=True)
    ]
    return np.concatenate(parts)


def _cross_fitted(
    name: str, trajectories: Sequence[Trajectory], base: Sequence[Signal | None], clusters: IntArray, seed: int
) -> FloatArray:
    """A signal that is fitted first, on the other half of the questions; NaN where that half has no ΔH."""
    first = np.random.default_rng(seed).permutation(int(clusters.max()) + 1) % 2 == 0
    half = first[clusters]
    scored: list[Signal | None] = [None] * len(trajectories)
    for side in (True, False):
        fitted_on = [s for s, h in zip(base, half, strict=True) if s is not None and h != side]
        if not any(np.isfinite(s.value).any() for s in fitted_on):
            continue
        config = SignalConfig(name=name, baseline=SIGNALS[name].options["fit"].fit(fitted_on))
        for i in np.flatnonzero(half == side).tolist():
            scored[i] = None if base[i] is None else score(trajectories[i], config)
    return _turned(trajectories, scored)


def _labels(
    trajectories: Sequence[Trajectory], evidence: Evidence | None, waste: WasteRule | None
) -> tuple[dict[str, FloatArray], list[str]]:
    """Labels that the trajectories and their tasks give, and what is to be said of them."""
    outcomes = {True: 1.0, False: 0.0, None: np.nan}
    labels = {
        "correct": np.array([outcomes[is_correct(t)] for t in trajectories for _ in t.calls]),
        "executed": np.array([float(c.status is CallStatus.OK) for t in trajectories for c in t.calls]),
    }
    notes: list[str] = []
    if evidence is not None:
        labels |= _evidence_labels(trajectories, evidence)
        if evidence.missing:
            missing, are = count(evidence.missing, "supporting document"), agreeing(evidence.missing, "is", "are")
            notes.append(f"{missing} of the tasks {are} not in the corpus")
        if np.isnan(labels["gold_evidence"]).all():
            notes.append("no call could be matched with a supporting document: the traces may belong to other tasks")
    if waste is not None:
        classes = [set(found) - HINTS for t in trajectories for found in waste(t)]
        labels["not_redundant"] = np.array([float(not found) for found in classes])
    return labels, notes


def _evidence_labels(trajectories: Sequence[Trajectory], evidence: Evidence) -> dict[str, FloatArray]:
    """Evidence of each call; NaN for tools that never returned any: they are no retrievers."""
    any_evidence, new_evidence, names = list[float](), list[float](), list[str]()
    for t in trajectories:
        retrieved = evidence.retrieved(t)
        names += [call.name for call in t.calls]
        if retrieved is None:
            any_evidence += [np.nan] * t.n_calls
            new_evidence += [np.nan] * t.n_calls
            continue
        seen: set[str] = set()
        for found in retrieved:
            any_evidence.append(float(bool(found)))
            new_evidence.append(float(bool(found - seen)))
            seen |= found
    retrievers = {name for name, value in zip(names, any_evidence, strict=True) if value == 1.0}
    blank = np.array([0.0 if name in retrievers else np.nan for name in names])
    return {"gold_evidence": np.array(any_evidence) + blank, "new_evidence": np.array(new_evidence) + blank}


def _given(calls: Sequence[CallReference], values: CallValues, names: Iterable[str]) -> dict[str, FloatArray]:
    """Columns by name, NaN where a call has no value; a column without any value is left out."""
    found = {name: np.array([values.get(key, {}).get(name, np.nan) for key in calls]) for name in names}
    return {name: column for name, column in found.items() if np.isfinite(column).any()}


def _user_labels(calls: Sequence[CallReference], values: CallValues) -> dict[str, FloatArray]:
    names = list(dict.fromkeys(name for row in values.values() for name in row))
    # Also those that this study lacks: a column of such a name would be described as what it is not.
    clash = sorted(set(names) & set(LABEL_MEANING))
    if clash:
        raise InvalidValueError(
            f"the labels have a column {clash[0]!r}, the name of a label that the study makes itself; "
            "give the column another name"
        )
    return _given(calls, values, names)


def _check_matched(calls: Sequence[CallReference], values: CallValues, what: str) -> list[str]:
    """Refuse values of other traces; say how many rows belong to no call."""
    known = set(calls)
    lost = [key for key in values if key not in known]
    if len(lost) == len(values):
        example = f", such as trajectory {lost[0][0]!r}, call {lost[0][1]!r}" if lost else ""
        raise InvalidValueError(
            f"no row of {what} belongs to a call of the traces{example}; give the traces it was made of"
        )
    belong = agreeing(len(lost), "belongs", "belong")
    return [f"{count(len(lost), 'row')} of {what} {belong} to no call of the traces"] if lost else []

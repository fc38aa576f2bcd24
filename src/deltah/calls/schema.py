"""Columns of the table of calls and of its table of trajectories: declared once, with unit and meaning.

The DDL, the documentation (`docs/table.md`) and the files of `deltah score --out` follow from the two records here.
What was not measured is null, and so is a bound that is not known. Entropies are in nats.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, Any, Final, NamedTuple, get_args, get_type_hints

import msgspec

from deltah.calls.grading import cluster_key, grader_of, is_correct
from deltah.calls.waste import Waste, waste_level
from deltah.core.signals import Signal
from deltah.core.types import SegmentKind, Trajectory
from deltah.errors import InvalidValueError
from deltah.traces.joining import DURATION_FROM, GAP

CHARS_PER_TOKEN: Final = 4.0
"""Rule of thumb for English text, where the record has no tokens."""


def _column(meaning: str, unit: str = "") -> msgspec.Meta:
    return msgspec.Meta(description=meaning, extra={"unit": unit})


class CallRow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One call of one trajectory."""

    trajectory: Annotated[str, _column("Id of the trajectory, as the log has it")]
    question: Annotated[str | None, _column("What was asked")]
    call: Annotated[str, _column("Id of the call, unique in its trajectory")]
    index: Annotated[int, _column("Place of the call in its trajectory, from 1")]
    tool: Annotated[str, _column("Name of the tool; empty for a call that could not be parsed")]
    arguments: Annotated[str, _column("Arguments as the model wrote them")]
    status: Annotated[str, _column("ok, error or unanswered")]
    round: Annotated[int, _column("Number k of the round, from 1; the calls of one turn share it and its signal")]
    calls_in_round: Annotated[int, _column("Calls of that round", "calls")]
    signal: Annotated[str | None, _column("Name of the signal behind `value`; null without entropies")]
    value: Annotated[float | None, _column("Signal of the call; negative: entropy fell", "see `unit`")]
    unit: Annotated[str | None, _column("Unit of `value`, `lower` and `upper`; empty for a ratio")]
    lower: Annotated[float | None, _column("Certified lower bound of `value`", "see `unit`")]
    upper: Annotated[float | None, _column("Certified upper bound of `value`; null: not known", "see `unit`")]
    verdict: Annotated[str | None, _column("reduced, not_reduced, undecided or undefined")]
    entropy_before: Annotated[float | None, _column("H(r_{k-1}), entropy of the reasoning before the round", "nats")]
    entropy_after: Annotated[float | None, _column("H(r_k), entropy of the reasoning after it", "nats")]
    tokens_before: Annotated[int | None, _column("Tokens that `entropy_before` pools", "tokens")]
    tokens_after: Annotated[int | None, _column("Tokens that `entropy_after` pools", "tokens")]
    waste: Annotated[list[Waste] | None, _column("Classes of waste that the text shows; null: nobody looked")]
    waste_level: Annotated[str | None, _column("certified, likely, hint or none: waste and verdict together")]
    call_tokens: Annotated[int | None, _column("Sampled tokens that spell the calls of the round", "tokens")]
    result_chars: Annotated[int | None, _column("Length of the result", "characters")]
    duration_s: Annotated[float | None, _column("Time the tool took", "seconds")]
    outcome: Annotated[float | None, _column("Outcome of the trajectory, in [0, 1]; null: not graded")]
    estimator: Annotated[str, _column("exact, top_k or none: where the entropies come from")]
    temperature: Annotated[float | None, _column("Temperature of the distribution that the entropies describe")]
    spans: Annotated[str, _column("exact or approximate: borders of reasoning, calls and results")]
    turn: Annotated[int, _column("Assistant message that issued the call, from 0")]
    own_tokens: Annotated[float, _column("Tokens that spell this call, see `tokens_estimated`", "tokens")]
    result_tokens: Annotated[float, _column("Tokens of its result, see `tokens_estimated`", "tokens")]
    prompt_tokens: Annotated[
        float, _column("Tokens of call and result, once for every later request that reads them", "tokens")
    ]
    repeated_prompt_tokens: Annotated[
        float, _column("Those of `prompt_tokens` that an earlier request had read: a prefix cache holds them", "tokens")
    ]
    tokens_estimated: Annotated[bool, _column("Whether a count is estimated at 4 characters a token")]
    duration_is_gap: Annotated[bool, _column("Whether `duration_s` is the time between two API calls")]
    correct: Annotated[bool | None, _column("Whether the outcome is 1; null: not graded")]
    model: Annotated[str | None, _column("Name of the model")]
    group_id: Annotated[str | None, _column("Rollouts of one prompt under one policy share it")]
    cluster: Annotated[str, _column("The question that bootstrap intervals resample: a task id, a text or an id")]
    key: Annotated[int, _column("Key of the trajectory, joins both tables; rises in the order of the log")]


class TrajectoryRow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One trajectory, also one without a call."""

    trajectory: Annotated[str, _column("Id of the trajectory, as the log has it")]
    question: Annotated[str | None, _column("What was asked")]
    prediction: Annotated[str | None, _column("Final answer")]
    outcome: Annotated[float | None, _column("Outcome in [0, 1]; null: not graded")]
    correct: Annotated[bool | None, _column("Whether the outcome is 1; null: not graded")]
    grader: Annotated[str | None, _column("Name of the grader that gave the outcome (qa, math, ...), or stated")]
    matched: Annotated[bool, _column("Whether the file of answers has a row of it")]
    calls: Annotated[int, _column("Calls, n", "calls")]
    rounds: Annotated[int, _column("Rounds, R", "rounds")]
    sampled_tokens: Annotated[int | None, _column("Tokens that the policy drew; null without tokens", "tokens")]
    signal: Annotated[str | None, _column("Name of the signal; null: the trajectory has no entropies")]
    unit: Annotated[str | None, _column("Unit of the signal and of `margin`; empty for a ratio")]
    margin: Annotated[float | None, _column("Dead band of the verdicts", "see `unit`")]
    segments: Annotated[int, _column("Segments of reasoning r_0 ... r_R with measured tokens", "segments")]
    segment_tokens: Annotated[int, _column("Tokens that they pool", "tokens")]
    entropies: Annotated[int, _column("Segments with an entropy H(r_k)", "segments")]
    entropy_sum: Annotated[float, _column("Sum of H(r_k) over them", "nats")]
    estimator: Annotated[str, _column("exact, top_k or none: where the entropies come from")]
    temperature: Annotated[float | None, _column("Temperature of the distribution that the entropies describe")]
    spans: Annotated[str, _column("exact or approximate: borders of reasoning, calls and results")]
    stop_reason: Annotated[str, _column("Why the trajectory ended")]
    model: Annotated[str | None, _column("Name of the model")]
    group_id: Annotated[str | None, _column("Rollouts of one prompt under one policy share it")]
    cluster: Annotated[str, _column("The question that bootstrap intervals resample: a task id, a text or an id")]
    metadata: Annotated[dict[str, Any], _column("Further facts of the source, as JSON")]
    key: Annotated[int, _column("Key of the trajectory, joins both tables; rises in the order of the log")]


class Column(NamedTuple):
    """One column of a table."""

    name: str
    type: str
    """In SQL."""
    unit: str
    """Empty for what has none."""
    meaning: str


_SQL_TYPES: Final[dict[object, str]] = {
    str: "VARCHAR",
    int: "BIGINT",
    float: "DOUBLE",
    bool: "BOOLEAN",
    list[Waste]: "VARCHAR[]",
    dict[str, Any]: "JSON",
}


def _columns(record: type[msgspec.Struct]) -> tuple[Column, ...]:
    found = []
    for name, hint in get_type_hints(record, include_extras=True).items():
        kind, meta = get_args(hint)
        plain = kind if kind in _SQL_TYPES else next(part for part in get_args(kind) if part in _SQL_TYPES)
        found.append(Column(name, _SQL_TYPES[plain], meta.extra["unit"], meta.description))
    return tuple(found)


TABLES: Final = {"calls": _columns(CallRow), "trajectories": _columns(TrajectoryRow)}
"""Columns by table, in order."""


def columns_markdown(table: str) -> str:
    """Columns of one of `TABLES` as a Markdown table, for the documentation."""
    rows = ["| column | type | unit | meaning |", "| --- | --- | --- | --- |"]
    rows += [f"| `{c.name}` | {c.type} | {c.unit} | {c.meaning} |" for c in TABLES[table]]
    return "\n".join(rows) + "\n"


def rows_of(
    trajectory: Trajectory,
    signal: Signal | None,
    waste: Sequence[frozenset[Waste]] | None,
    *,
    key: int = 0,
    matched: bool = False,
    cluster: str = "task_id",
) -> tuple[TrajectoryRow, list[CallRow]]:
    """Row of a trajectory, and the rows of its calls in the order they were issued.

    Args:
        trajectory: C calls.
        signal: None for one without entropies.
        waste: (C,) what `waste_of_calls` says of it; None: nobody looked for waste.
        key: Of the trajectory in its table.
        matched: Whether the file of answers has a row of it.
        cluster: Metadata key that names the question.

    Raises:
        InvalidValueError: if `signal` or `waste` speaks of another number of calls.
    """
    n = trajectory.n_calls
    spoken_of = {"signal": n if signal is None else signal.n_calls, "waste": n if waste is None else len(waste)}
    for what, found in spoken_of.items():
        if found != n:
            raise InvalidValueError(
                f"trajectory {trajectory.id!r} has {n} calls, its {what} {found}; give one for each, in the order of "
                "the trajectories"
            )
    shared = {
        "trajectory": trajectory.id,
        "question": trajectory.question,
        "outcome": trajectory.outcome,
        "correct": is_correct(trajectory),
        "signal": signal and signal.name,
        "unit": signal and signal.unit,
        "estimator": trajectory.estimator.value,
        "temperature": trajectory.temperature,
        "spans": trajectory.spans.value,
        "model": trajectory.model,
        "group_id": trajectory.group_id,
        "cluster": ":".join(cluster_key(trajectory, cluster)),
        "key": key,
    }
    return _trajectory_row(trajectory, signal, shared, matched), _call_rows(trajectory, signal, waste, shared)


def _trajectory_row(t: Trajectory, signal: Signal | None, shared: dict[str, Any], matched: bool) -> TrajectoryRow:
    grader = grader_of(t)
    tokens = [] if signal is None else [n for n in signal.segment_tokens.tolist() if n]
    entropies = [] if signal is None else [h for h in signal.segment_entropy.tolist() if h == h]
    return TrajectoryRow(
        **shared,
        prediction=t.prediction,
        grader=grader,
        matched=matched,
        calls=t.n_calls,
        rounds=len(t.rounds),
        sampled_tokens=int(t.response_mask.sum()) if len(t) else None,
        margin=None if signal is None else signal.margin,
        segments=len(tokens),
        segment_tokens=sum(tokens),
        entropies=len(entropies),
        entropy_sum=sum(entropies),
        stop_reason=t.stop_reason.value,
        metadata=dict(t.metadata),
    )


def _call_rows(
    t: Trajectory, signal: Signal | None, waste: Sequence[frozenset[Waste]] | None, shared: dict[str, Any]
) -> list[CallRow]:
    if not t.calls:
        return []
    spelled, costs, measured = _call_tokens(t), _costs(t), _measured(t, signal)
    is_gap = t.metadata.get(DURATION_FROM) == GAP
    rows = []
    for i, (call, k) in enumerate(zip(t.calls, t.round_of_call.tolist(), strict=True)):
        found = None if waste is None else waste[i]
        rows.append(
            CallRow(
                **shared,
                **measured[i],
                **costs[i],
                call=call.id,
                index=i + 1,
                tool=call.name,
                arguments=call.arguments,
                status=call.status.value,
                round=k + 1,
                calls_in_round=len(t.rounds[k].calls),
                waste=None if found is None else sorted(found),
                waste_level=None if found is None else waste_level(found, measured[i]["verdict"]).value,
                call_tokens=spelled.get(call.turn),
                result_chars=None if call.result is None else len(call.result),
                duration_s=call.duration_s,
                turn=call.turn,
                duration_is_gap=is_gap and call.duration_s is not None,
            )
        )
    return rows


def _call_tokens(trajectory: Trajectory) -> dict[int, int]:
    """Tokens that spell calls, by turn."""
    found: dict[int, int] = {}
    for segment in trajectory.segments:
        if segment.kind is SegmentKind.CALL and segment.n_tokens:
            found[segment.turn] = found.get(segment.turn, 0) + segment.n_tokens
    return found


_MEASURED: Final = (
    "value",
    "lower",
    "upper",
    "verdict",
    "entropy_before",
    "entropy_after",
    "tokens_before",
    "tokens_after",
)


def _measured(t: Trajectory, signal: Signal | None) -> list[dict[str, Any]]:
    """What was measured of each call; an unanswered one has no value, whatever its round has."""
    if signal is None:
        return [dict.fromkeys(_MEASURED)] * t.n_calls
    rounds = signal.round_of_call
    columns = (
        signal.call_value.tolist(),
        signal.call_lower.tolist(),
        signal.call_upper.tolist(),
        signal.call_verdicts,
        signal.segment_entropy[rounds].tolist(),
        signal.segment_entropy[rounds + 1].tolist(),
        signal.segment_tokens[rounds].tolist(),
        signal.segment_tokens[rounds + 1].tolist(),
    )
    return [dict(zip(_MEASURED, row, strict=True)) for row in zip(*columns, strict=True)]


def _costs(t: Trajectory) -> list[dict[str, Any]]:
    """Tokens of every call: counted where the record has tokens, else estimated from characters."""
    last_turn = max((s.turn for s in t.segments if s.kind.sampled), default=-1)
    last_turn = max(last_turn, t.calls[-1].turn)
    lengths: dict[tuple[SegmentKind, int], list[int]] = defaultdict(list)
    for segment in t.segments:
        lengths[segment.kind, segment.turn].append(segment.n_tokens)
    costs: list[dict[str, Any]] = []
    for r in t.rounds:
        calls = [t.calls[i] for i in r.calls]
        own_chars = [len(c.name) + len(c.arguments) for c in calls]
        result_chars = [len(c.result or "") for c in calls]
        spelled = _shared(lengths[SegmentKind.CALL, r.turn], own_chars)
        read = _shared(lengths[SegmentKind.RESULT, r.turn], result_chars)
        later = last_turn - r.turn
        for own, result, a, b in zip(spelled, read, own_chars, result_chars, strict=True):
            own_tokens = a / CHARS_PER_TOKEN if own is None else own
            result_tokens = b / CHARS_PER_TOKEN if result is None else result
            costs.append(
                {
                    "own_tokens": own_tokens,
                    "result_tokens": result_tokens,
                    "prompt_tokens": (own_tokens + result_tokens) * later,
                    "repeated_prompt_tokens": (own_tokens + result_tokens) * max(later - 1, 0),
                    "tokens_estimated": own is None or (result is None and b > 0),
                }
            )
    return costs


def _shared(lengths: list[int], chars: list[int]) -> list[float] | list[None]:
    """Tokens of a turn's segments of one kind, shared out to its calls; None for each where there are no tokens.

    Args:
        lengths: Tokens of each segment; one segment a call: each its own.
        chars: Characters of each call's share, in proportion to which other tokens are given.
    """
    if not any(lengths):
        return [None] * len(chars)
    if all(lengths) and len(lengths) == len(chars):
        return [float(n) for n in lengths]
    total = sum(chars)
    return [sum(lengths) * (n / total if total else 1 / len(chars)) for n in chars]

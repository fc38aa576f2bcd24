"""Columns of the table of calls and of its table of trajectories: declared once, with unit and meaning.

The DDL, `docs/table.md` and the files of `deltah score --out` follow from the lists here. What was not measured is
null, and so is a bound that is not known. Entropies are in nats.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Final, NamedTuple, TypeAlias

import msgspec
import numpy as np

from deltah.calls.evidence import CallFacts
from deltah.calls.grading import cluster_key, grader_of, is_correct
from deltah.core.signals import Signal
from deltah.core.types import SegmentKind, Trajectory
from deltah.errors import InvalidValueError
from deltah.traces.trees import DURATION_FROM, GAP

CHARS_PER_TOKEN: Final = 4.0
"""Rule of thumb for English text, where the record has no tokens."""
_JSON: Final = msgspec.json.Encoder(enc_hook=lambda x: x.item() if isinstance(x, np.generic) else str(x))


class Column(NamedTuple):
    """One column of a table; its type is in SQL."""

    name: str
    type: str
    meaning: str
    unit: str = ""


_IDS: Final = (
    Column("trajectory", "VARCHAR", "Id of the trajectory, as the log has it"),
    Column("question", "VARCHAR", "What was asked"),
)
_SIGNAL: Final = Column("signal", "VARCHAR", "Name of the signal; null without entropies")
_UNIT: Final = Column("unit", "VARCHAR", "Unit of the signal, its bounds and margin; empty for a ratio")
_CALLS: Final = (
    Column("call", "VARCHAR", "Id of the call, unique in its trajectory"),
    Column("index", "BIGINT", "Place of the call in its trajectory, from 1"),
    Column("tool", "VARCHAR", "Name of the tool; empty for a call that could not be parsed"),
    Column("arguments", "VARCHAR", "Arguments as the model wrote them"),
    Column("status", "VARCHAR", "ok, error or unanswered"),
    Column("round", "BIGINT", "Number k of the round, from 1; the calls of one turn share it and its signal"),
    Column("calls_in_round", "BIGINT", "Calls of that round", "calls"),
    _SIGNAL,
    Column("value", "DOUBLE", "Signal of the call; negative: entropy fell", "see `unit`"),
    _UNIT,
    Column("lower", "DOUBLE", "Certified lower bound of `value`", "see `unit`"),
    Column("upper", "DOUBLE", "Certified upper bound of `value`; null: not known", "see `unit`"),
    Column("verdict", "VARCHAR", "reduced, not_reduced, undecided or undefined"),
    Column("reason", "VARCHAR", "Why the verdict is undefined; null where it is not"),
    Column("entropy_before", "DOUBLE", "H(r_{k-1}), entropy of the reasoning before the round", "nats"),
    Column("entropy_after", "DOUBLE", "H(r_k), entropy of the reasoning after it", "nats"),
    Column("tokens_before", "BIGINT", "Tokens that `entropy_before` pools", "tokens"),
    Column("tokens_after", "BIGINT", "Tokens that `entropy_after` pools", "tokens"),
    Column("repeats", "BIGINT", "Place (`index`) of the latest earlier equal call of the same tool; null: none"),
    Column("same_result", "BOOLEAN", "Whether that call gave the same result; null: there is none to compare"),
    Column("between", "VARCHAR[]", "Tools called between the two, those of their turns included"),
    Column("message_between", "BOOLEAN", "Whether a user or system message stood between the two"),
    Column("waste", "VARCHAR[]", "Classes that the text shows, see docs/waste.md; null: nobody looked"),
    Column("redundant", "BOOLEAN", "Whether the call repeats one, for nothing; null: its tool is not known"),
    Column("waste_level", "VARCHAR", "certified, likely, hint or none: what is redundant, and the verdict"),
    Column("cost", "DOUBLE", "Fee and tokens at the given prices; null: a price is not known", "see `Prices`"),
    Column("cost_with_cache", "DOUBLE", "The same with a prefix cache that never misses", "see `Prices`"),
    Column("duration_s", "DOUBLE", "Time the tool took", "seconds"),
    Column("duration_is_gap", "BOOLEAN", "Whether `duration_s` is the time between two API calls"),
    Column("turn", "BIGINT", "Assistant message that issued the call, from 0"),
    Column("call_tokens", "BIGINT", "Sampled tokens that spell the calls of the round", "tokens"),
    Column("result_chars", "BIGINT", "Length of the result", "characters"),
    Column("own_tokens", "DOUBLE", "Tokens that spell this call, see `tokens_estimated`", "tokens"),
    Column("result_tokens", "DOUBLE", "Tokens of its result, see `tokens_estimated`", "tokens"),
    Column("prompt_tokens", "DOUBLE", "Tokens of call and result, for every later request that reads them", "tokens"),
    Column("repeated_prompt_tokens", "DOUBLE", "Those of `prompt_tokens` that an earlier request had read", "tokens"),
    Column("tokens_estimated", "BOOLEAN", "Whether a count is estimated at 4 characters per token"),
    Column("call_hash", "UBIGINT", "Hash of tool and arguments: equal calls have the same"),
    Column("result_hash", "UBIGINT", "Hash of the result; null: none to compare, or an error that may pass"),
    Column("news_hash", "UBIGINT", "Hash of the words of the result that the call lacks"),
)
_TRAJECTORIES: Final = (
    Column("prediction", "VARCHAR", "Final answer"),
    Column("grader", "VARCHAR", "Name of the grader that gave the outcome (qa, math, ...), or stated"),
    Column("matched", "BOOLEAN", "Whether the file of answers has a row of it"),
    Column("calls", "BIGINT", "Calls, n", "calls"),
    Column("rounds", "BIGINT", "Rounds, R", "rounds"),
    Column("sampled_tokens", "BIGINT", "Tokens that the policy drew; null without tokens", "tokens"),
    _SIGNAL,
    _UNIT,
    Column("margin", "DOUBLE", "Dead band of the verdicts", "see `unit`"),
    Column("segments", "BIGINT", "Segments of reasoning r_0 ... r_R with measured tokens", "segments"),
    Column("segment_tokens", "BIGINT", "Tokens that they pool", "tokens"),
    Column("entropies", "BIGINT", "Segments with an entropy H(r_k)", "segments"),
    Column("entropy_sum", "DOUBLE", "Sum of H(r_k) over them", "nats"),
    Column("stop_reason", "VARCHAR", "Why the trajectory ended"),
    Column("metadata", "JSON", "Further facts of the source, as JSON"),
)
_SHARED: Final = (
    Column("outcome", "DOUBLE", "Outcome of the trajectory, in [0, 1]; null: not graded"),
    Column("correct", "BOOLEAN", "Whether the outcome is 1; null: not graded"),
    Column("estimator", "VARCHAR", "exact, top_k or none: where the entropies come from"),
    Column("temperature", "DOUBLE", "Temperature of the distribution that the entropies describe"),
    Column("spans", "VARCHAR", "exact or approximate: borders of reasoning, calls and results"),
    Column("model", "VARCHAR", "Name of the model"),
    Column("group_id", "VARCHAR", "Rollouts of one prompt under one policy share it"),
    Column("cluster", "VARCHAR", "The question that bootstrap intervals resample: a task id, a text or an id"),
    Column("file", "VARCHAR", "File of the log, the first of a joined trajectory; null: not from `read_calls`"),
    Column("key", "BIGINT", "Key of the trajectory, joins both tables; rises in the order of the log"),
)
TABLES: Final = {"calls": (*_IDS, *_CALLS, *_SHARED), "trajectories": (*_IDS, *_TRAJECTORIES, *_SHARED)}
"""Columns by table, in order."""
TOOLS: Final = (
    Column("tool", "VARCHAR", "Name of the tool"),
    Column("calls", "BIGINT", "Its calls", "calls"),
    Column("trajectories", "BIGINT", "Trajectories that call it", "trajectories"),
    Column(
        "repeats",
        "BIGINT",
        "Calls that equal an earlier one, in any trajectory; copies of a conversation count once",
        "calls",
    ),
    Column("repeated", "BIGINT", "Different calls that were made more than once", "calls"),
    Column("changed", "BIGINT", "Those of them that gave different results", "calls"),
    Column("kind", "VARCHAR", "read, poll, write or unknown"),
    Column("kind_from", "VARCHAR", "declared, annotated, own or measured; null: unknown"),
)
"""Columns of the table of tools, which `deltah.calls.tool_kinds` fills."""
Row: TypeAlias = dict[str, Any]
"""By column; what is absent is null."""
_SAME_NAMES: Final = ("question", "outcome", "estimator", "temperature", "spans", "model", "group_id")
"""Columns that are attributes of a trajectory."""
Facts: TypeAlias = Sequence[CallFacts]
"""(C,) what `facts_of_calls` says."""


def rows_of(
    trajectory: Trajectory,
    signal: Signal | None,
    facts: Facts | None,
    *,
    key: int = 0,
    matched: bool = False,
    cluster: str = "task_id",
    file: str | None = None,
) -> tuple[Row, list[Row]]:
    """Row of a trajectory and rows of its calls, as of `CallTable.add`; without `facts` nobody looked for waste."""
    n = trajectory.n_calls
    given = {"signal": n if signal is None else signal.n_calls, "facts": n if facts is None else len(facts)}
    for what, found in given.items():
        if found != n:
            raise InvalidValueError(
                f"trajectory {trajectory.id!r} has {n} calls, its {what} {found}; give one for each, in the order of "
                "the trajectories"
            )
    shared: Row = {name: getattr(trajectory, name) for name in _SAME_NAMES}
    shared |= {
        "trajectory": trajectory.id,
        "correct": is_correct(trajectory),
        "signal": signal and signal.name,
        "unit": signal and signal.unit,
        "cluster": ":".join(cluster_key(trajectory, cluster)),
        "file": file,
        "key": key,
    }
    tokens = [] if signal is None else [n for n in signal.segment_tokens.tolist() if n]
    entropies = [] if signal is None else [h for h in signal.segment_entropy.tolist() if h == h]
    row = shared | {
        "prediction": trajectory.prediction,
        "grader": grader_of(trajectory),
        "matched": matched,
        "calls": n,
        "rounds": len(trajectory.rounds),
        "sampled_tokens": int(trajectory.response_mask.sum()) if len(trajectory) else None,
        "margin": None if signal is None else signal.margin,
        "segments": len(tokens),
        "segment_tokens": sum(tokens),
        "entropies": len(entropies),
        "entropy_sum": sum(entropies),
        "stop_reason": trajectory.stop_reason,
        "metadata": dict(trajectory.metadata),
    }
    return row, _call_rows(trajectory, signal, facts, shared)


def _call_rows(t: Trajectory, signal: Signal | None, facts: Facts | None, shared: Row) -> list[Row]:
    tokens, measured = _tokens(t), dict[str, Sequence[Any]]()
    if signal is not None:  # an unanswered call has no value, whatever its round has
        before, entropy, n_tokens = signal.round_of_call, signal.segment_entropy, signal.segment_tokens
        measured = {name: getattr(signal, f"call_{name}").tolist() for name in ("value", "lower", "upper")}
        measured |= {
            "verdict": signal.call_verdicts,
            "reason": signal.call_reasons,
            "entropy_before": entropy[before].tolist(),
            "entropy_after": entropy[before + 1].tolist(),
            "tokens_before": n_tokens[before].tolist(),
            "tokens_after": n_tokens[before + 1].tolist(),
        }
    is_gap = t.metadata.get(DURATION_FROM) == GAP
    rows = []
    for i, (call, k) in enumerate(zip(t.calls, t.round_of_call.tolist(), strict=True)):
        row = shared | tokens[i] | {name: column[i] for name, column in measured.items()}
        if facts is not None:
            row |= _fact_columns(facts[i])
        row |= {
            "call": call.id,
            "index": i + 1,
            "tool": call.name,
            "arguments": call.arguments,
            "status": call.status.value,
            "round": k + 1,
            "calls_in_round": len(t.rounds[k].calls),
            "result_chars": None if call.result is None else len(call.result),
            "duration_s": call.duration_s,
            "turn": call.turn,
            "duration_is_gap": is_gap and call.duration_s is not None,
        }
        rows.append(row)
    return rows


def _fact_columns(facts: CallFacts) -> Row:
    row: Row = dict(zip(("call_hash", "result_hash", "news_hash"), facts.hashes, strict=True))
    row |= {"waste": sorted(facts.waste), "redundant": False}
    if facts.repeats is not None:
        row |= {"repeats": facts.repeats + 1, "same_result": facts.same_result, "between": facts.between}
        row["message_between"] = facts.message_between
    return row


def _tokens(t: Trajectory) -> list[Row]:
    """Tokens of every call: counted where the record has tokens, else estimated from characters."""
    last_turn = max([-1, *(s.turn for s in t.segments if s.kind.sampled), *(c.turn for c in t.calls)])
    lengths: dict[tuple[SegmentKind, int], list[int]] = defaultdict(list)
    for segment in t.segments:
        lengths[segment.kind, segment.turn].append(segment.n_tokens)
    rows: list[Row] = []
    for r in t.rounds:
        calls = [t.calls[i] for i in r.calls]
        spelling, answering = lengths[SegmentKind.CALL, r.turn], lengths[SegmentKind.RESULT, r.turn]
        own_tokens, own_estimated = _divided(spelling, [len(c.name) + len(c.arguments) for c in calls])
        result_tokens, result_estimated = _divided(answering, [len(c.result or "") for c in calls])
        for own, result in zip(own_tokens, result_tokens, strict=True):
            rows.append(
                {
                    "call_tokens": sum(spelling) or None,
                    "own_tokens": own,
                    "result_tokens": result,
                    "prompt_tokens": (own + result) * (last_turn - r.turn),
                    "repeated_prompt_tokens": (own + result) * max(last_turn - r.turn - 1, 0),
                    "tokens_estimated": own_estimated or (result_estimated and result > 0),
                }
            )
    return rows


def _divided(lengths: list[int], chars: list[int]) -> tuple[list[float], bool]:
    """Tokens by call of a turn's segments of one kind (its own segment, or a share by characters); if estimated."""
    if not any(lengths):
        return [n / CHARS_PER_TOKEN for n in chars], True
    if all(lengths) and len(lengths) == len(chars):
        return [float(n) for n in lengths], False
    total = sum(chars)
    return [sum(lengths) * (n / total if total else 1 / len(chars)) for n in chars], False


class RowFiles(NamedTuple):
    """Files by table, if any, whose rows the table has still to read; bytes of all rows and of the longest."""

    paths: Mapping[str, str]
    n_bytes: int
    longest: int


class RowWriter:
    """Writes rows as JSON lines to files of a folder, in any process; the table reads them in bulk."""

    def __init__(self, folder: str, first_key: int = 0) -> None:
        """Rows go to `CallTable.folder`; the first trajectory has the first key, the others follow."""
        self._folder, self._key = folder, first_key
        self._files: dict[str, BinaryIO] = {}
        self.n_bytes = self._longest = 0

    def add(self, trajectory: Trajectory, signal: Signal | None, facts: Facts | None, **more: Any) -> None:
        """Write the rows of one trajectory, see `rows_of`."""
        row, calls = rows_of(trajectory, signal, facts, key=self._key, **more)
        self._key += 1
        if not self._files:
            self._files = {name: open(f"{self._folder}/{uuid.uuid4().hex}.{name}", "wb") for name in TABLES}  # noqa: SIM115
        self._write("trajectories", row)
        for call in calls:
            self._write("calls", call)

    def take(self) -> RowFiles:
        """Close the files for the table to read; further rows go to others."""
        for file in self._files.values():
            file.close()
        taken = RowFiles({table: file.name for table, file in self._files.items()}, self.n_bytes, self._longest)
        self._files, self.n_bytes, self._longest = {}, 0, 0
        return taken

    def _write(self, table: str, row: Row) -> None:
        try:
            line = _JSON.encode(row)
        except UnicodeEncodeError:  # a lone surrogate, which no UTF-8 file can hold
            line = _JSON.encode(_replaced(row))
        self._files[table].write(line + b"\n")
        self.n_bytes += len(line)
        self._longest = max(self._longest, len(line))


def _replaced(value: Any) -> Any:
    if isinstance(value, dict):
        return {_replaced(key): _replaced(item) for key, item in value.items()}
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value

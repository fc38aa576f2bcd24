"""Importer for the token exports of prime-rl: one sequence of a training batch, with exact entropy per token.

docs/formats.md states the mapping of every field and what is lost. Source: `TokenExporter` of prime-rl, schema version
1, at commit 559b447. Its arrays follow our index rule: index t describes the distribution token t was drawn from.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

from deltah.core.align import runs
from deltah.core.types import Estimator, FloatArray, Segment, SegmentKind, SpanQuality, ToolCall, Trajectory
from deltah.errors import DataError
from deltah.traces.importing import IMPORTERS, RecordContext, finite, outcome_of, prompt_group, scalars

SCHEMA_VERSION = 1
_NEGATIVE_TOLERANCE_NATS = 1e-2  # how far below 0 rounding in reduced precision may take an entropy


class Export(msgspec.Struct):
    """One record of `rank_<r>.jsonl`, without the loss's diagnostics."""

    schema_version: int
    token_ids: list[int]
    loss_mask: list[bool]
    entropy: list[float | None]
    trainer_logprobs: list[float | None] | None = None
    advantages: list[float | None] | None = None
    rewards: list[float | None] | None = None
    step: int | None = None
    rank: int | None = None
    export_sequence_idx: int | None = None
    env_name: str | None = None
    training_mode: str | None = None


@IMPORTERS.register(
    "prime-rl", meaning="Token export of prime-rl", fields=("loss_mask", "token_ids", "entropy"), schema=Export
)
def read(export: Export, context: RecordContext) -> Trajectory:
    """Read one exported sequence."""
    _check(export)
    turns = runs(np.array(export.loss_mask, dtype=np.bool_))
    entropy = _measured(export.entropy, turns)
    if (entropy < -_NEGATIVE_TOLERANCE_NATS).any():
        raise DataError(f"field entropy: {np.nanmin(entropy):.4g} is negative; expected nats")
    try:
        token_ids = np.array(export.token_ids, dtype=np.int64)
    except OverflowError as error:
        raise DataError("field token_ids: a token id does not fit into 64 bits") from error
    seen = bool(np.isfinite(entropy).any())
    place = (export.step, export.rank, export.export_sequence_idx)
    known = {name: getattr(export, name) for name in ("step", "rank", "env_name", "training_mode")}
    known["advantage"] = _one_value(export.advantages, turns)
    return Trajectory(
        id=context.default_id if None in place else "step-{}/rank-{}/{}".format(*place),
        segments=tuple(_segments(turns, len(export.loss_mask))),
        calls=tuple(_call(k, *pair) for k, pair in enumerate(pairwise(turns))),
        entropy=np.maximum(entropy, 0.0) if seen else None,
        estimator=Estimator.EXACT if seen else Estimator.NONE,
        logprobs=None if export.trainer_logprobs is None else _measured(export.trainer_logprobs, turns),
        token_ids=token_ids,
        group_id=prompt_group(export.step, export.token_ids[: turns[0][0]]),
        outcome=outcome_of(_one_value(export.rewards, turns)),
        spans=SpanQuality.APPROXIMATE,
        metadata=scalars({name: value for name, value in known.items() if value is not None}) | {"has_text": False},
    )


def _check(export: Export) -> None:
    if export.schema_version != SCHEMA_VERSION:
        raise DataError(
            f"field schema_version: the prime-rl export is of version {export.schema_version}, this release of deltah "
            f"reads version {SCHEMA_VERSION}; upgrade deltah"
        )
    for name in ("token_ids", "entropy", "trainer_logprobs", "advantages", "rewards"):
        column: list[Any] | None = getattr(export, name)
        if column is not None and len(column) != len(export.loss_mask):
            raise DataError(f"field {name}: {len(column)} values for {len(export.loss_mask)} tokens of loss_mask")
    if not any(export.loss_mask):
        raise DataError("field loss_mask: no token is True; there is nothing the policy wrote")


def _measured(column: list[float | None], turns: list[tuple[int, int]]) -> FloatArray:
    """(T,) values on the policy's tokens; NaN elsewhere, at token 0 and where not finite."""
    values, kept = np.array(column, dtype=np.float64), np.zeros(len(column), dtype=np.bool_)
    for start, stop in turns:
        kept[start:stop] = True
    kept[0] = False
    return np.where(kept & np.isfinite(values), values, np.nan)


def _segments(turns: list[tuple[int, int]], n_tokens: int) -> list[Segment]:
    """Partition 0..T."""
    segments, end = list[Segment](), 0
    for k, (start, stop) in enumerate(turns):
        if start > end:
            kind = SegmentKind.RESULT if k else SegmentKind.PROMPT
            segments.append(Segment(kind=kind, start=end, stop=start, turn=max(k - 1, 0)))
        segments.append(Segment(kind=SegmentKind.REASONING, start=start, stop=stop, turn=k))
        end = stop
    if n_tokens > end:
        segments.append(Segment(kind=SegmentKind.RESULT, start=end, stop=n_tokens, turn=len(turns) - 1))
    return segments


def _call(k: int, turn: tuple[int, int], following: tuple[int, int]) -> ToolCall:
    """A call somewhere in its turn, whose text the export does not have."""
    arguments, result = "tokens {}:{}".format(*turn), f"tokens {turn[1]}:{following[0]}"
    return ToolCall(id=f"call-{k}", name="unknown", arguments=arguments, turn=k, result=result)


def _one_value(column: list[float | None] | None, turns: list[tuple[int, int]]) -> float | None:
    """The number that every policy token carries; None if they differ or there is none."""
    if column is None:
        return None
    values = {value for start, stop in turns for value in column[start:stop]}
    return finite(values.pop()) if len(values) == 1 else None

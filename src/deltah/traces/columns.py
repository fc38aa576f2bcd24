"""Layout of a Parquet file of traces: one row a trajectory, and the way from trajectories to columns and back.

The columns are those of the record (`deltah.traces.record`), with these differences made for SQL:

* a per-token array is a list in which NULL is "not measured" (NaN in memory); infinities are infinities;
* `token_texts` is a pair: `text`, the whole text, and `token_ends`, the number of characters up to each token's end, so
  that the text of a span is one `substring`;
* `metadata` is its JSON object as text: `metadata->>'task'`;
* no field is left out because it holds its default.

Nested and scalar fields travel through JSON, which the database parses by `STRUCTURE` in one pass; arrays travel as
numpy arrays. Nothing here opens a file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from deltah.core.texts import TokenTexts
from deltah.core.types import CallStatus, Segment, SegmentKind, ToolCall, Trajectory
from deltah.errors import DataError
from deltah.traces.decode import field_message, replace_surrogates
from deltah.traces.record import SCHEMA_VERSION, TraceRecord, decode_metadata, encode_metadata

Structure: TypeAlias = str | Mapping[str, "Structure"] | Sequence["Structure"]
Columns: TypeAlias = Mapping[str, NDArray[Any]]

_SEGMENT: Final = {"kind": "VARCHAR", "start": "BIGINT", "stop": "BIGINT", "turn": "BIGINT", "text": "VARCHAR"}
_CALL: Final = {
    "id": "VARCHAR",
    "name": "VARCHAR",
    "arguments": "VARCHAR",
    "turn": "BIGINT",
    "result": "VARCHAR",
    "status": "VARCHAR",
    "duration_s": "DOUBLE",
}
STRUCTURE: Final[Mapping[str, Structure]] = {
    "schema_version": "BIGINT",
    "id": "VARCHAR",
    "group_id": "VARCHAR",
    "model": "VARCHAR",
    "question": "VARCHAR",
    "prediction": "VARCHAR",
    "golden_answers": ["VARCHAR"],
    "outcome": "DOUBLE",
    "stop_reason": "VARCHAR",
    "estimator": "VARCHAR",
    "temperature": "DOUBLE",
    "spans": "VARCHAR",
    "metadata": "VARCHAR",
    "segments": [_SEGMENT],
    "calls": [_CALL],
    "text": "VARCHAR",
}
"""Columns that travel through JSON, with their SQL types; a list has one element, the type of its elements."""
ARRAYS: Final = {
    "entropy": "DOUBLE",
    "entropy_lower": "DOUBLE",
    "entropy_upper": "DOUBLE",
    "logprobs": "DOUBLE",
    "token_ids": "BIGINT",
    "token_ends": "BIGINT",
}
"""Per-token columns, each a list with T elements of this SQL type, or NULL."""
REQUIRED: Final = ("schema_version", "id", "segments")
"""Columns that a file must have; any other that is missing was not recorded."""
NESTED: Final = ("segments", "calls")
_SEGMENT_KEYS: Final = ("kind", "start", "stop", "turn")
_CALL_KEYS: Final = ("id", "name", "arguments", "turn", "status")
_FLOAT_ARRAYS: Final = tuple(name for name, kind in ARRAYS.items() if kind == "DOUBLE")
_KINDS: Final = {kind.value: kind for kind in SegmentKind}
_STATUSES: Final = {status.value: status for status in CallStatus}


def sql_type(structure: Structure) -> str:
    """SQL type of a part of `STRUCTURE`."""
    if isinstance(structure, str):
        return structure
    if isinstance(structure, Mapping):
        fields = ", ".join(f'"{name}" {sql_type(part)}' for name, part in structure.items())
        return f"STRUCT({fields})"
    return f"{sql_type(structure[0])}[]"


LAYOUT: Final[Mapping[str, str]] = {name: sql_type(part) for name, part in STRUCTURE.items()} | {
    name: f"{kind}[]" for name, kind in ARRAYS.items()
}
"""Every column with its SQL type, in the order of the file."""


def to_columns(trajectories: Sequence[Trajectory]) -> Columns:
    """Object columns of N trajectories: `head`, the JSON text of `STRUCTURE`, and the arrays."""
    columns = {name: np.empty(len(trajectories), dtype=object) for name in ("head", *ARRAYS)}
    for i, trajectory in enumerate(trajectories):
        texts = None if trajectory.token_texts is None else TokenTexts.of(trajectory.token_texts)
        columns["head"][i] = _head(trajectory, texts)
        for name in ARRAYS:
            columns[name][i] = getattr(trajectory, name, None)
        columns["token_ends"][i] = None if texts is None else texts.ends
    return columns


def _head(trajectory: Trajectory, texts: TokenTexts | None) -> str:
    head = {
        "schema_version": SCHEMA_VERSION,
        "id": trajectory.id,
        "group_id": trajectory.group_id,
        "model": trajectory.model,
        "question": trajectory.question,
        "prediction": trajectory.prediction,
        "golden_answers": trajectory.golden_answers,
        "outcome": trajectory.outcome,
        "stop_reason": trajectory.stop_reason,
        "estimator": trajectory.estimator,
        "temperature": _json_number(trajectory.temperature),
        "spans": trajectory.spans,
        "metadata": encode_metadata(trajectory.metadata),
        "segments": [
            {"kind": s.kind, "start": s.start, "stop": s.stop, "turn": s.turn, "text": s.text}
            for s in trajectory.segments
        ],
        "calls": [_call_row(call) for call in trajectory.calls],
        "text": None if texts is None else texts.joined,
    }
    try:
        return msgspec.json.encode(head).decode()
    except UnicodeEncodeError:
        return msgspec.json.encode(replace_surrogates(msgspec.to_builtins(head))).decode()


def _call_row(call: ToolCall) -> dict[str, object]:
    return {
        "id": call.id,
        "name": call.name,
        "arguments": call.arguments,
        "turn": call.turn,
        "result": call.result,
        "status": call.status,
        "duration_s": _json_number(call.duration_s),
    }


def _json_number(value: float | None) -> float | str | None:
    """A number that JSON cannot write becomes the text that SQL reads as that number."""
    return value if value is None or math.isfinite(value) else str(float(value))


class Rows:
    """Trajectories of a block of N rows, built one at a time."""

    def __init__(self, columns: Columns, segments: Columns, calls: Columns) -> None:
        """Take what was read; a masked value is NULL.

        Args:
            columns: (N,) each: scalars, arrays of one row each, and under `segments` and `calls` how many a row has.
            segments: Fields of the segments of all rows, one after the other.
            calls: The same of the calls; empty if the file has none.
        """
        self._columns = {name: values.tolist() for name, values in columns.items()}
        self._lengths = {name: self._columns.pop(name, None) or [0] * len(columns["id"]) for name in NESTED}
        self._cuts = {name: list(accumulate((n or 0 for n in ns), initial=0)) for name, ns in self._lengths.items()}
        self._nested = {"segments": _lists(segments, _SEGMENT), "calls": _lists(calls, _CALL)}
        answers = self._columns.get("golden_answers", [])
        self._columns["golden_answers"] = [() if a is None else tuple(a.tolist()) for a in answers] or [()] * len(self)
        self._has_null = None in self._lengths["segments"] or any(None in a for a in self._columns["golden_answers"])
        for values in (columns["id"], *(segments[k] for k in _SEGMENT_KEYS), *(calls[k] for k in _CALL_KEYS if calls)):
            self._has_null |= isinstance(values, np.ma.MaskedArray) and bool(values.mask.any())

    def __len__(self) -> int:
        return len(self._columns["id"])

    def trajectory(self, i: int) -> Trajectory:
        """Build the trajectory of row i.

        Raises:
            DataError: if its fields do not fit the record, or contradict each other.
        """
        if self._has_null:
            self._validate(i)
        try:
            return self._build(i)
        except (KeyError, TypeError, ValueError) as error:
            self._validate(i)
            raise error if isinstance(error, DataError) else DataError(str(error)) from error

    def _build(self, i: int) -> Trajectory:
        fields = {name: values[i] for name, values in self._columns.items()}
        text, ends = fields.pop("text", None), _integers(fields.pop("token_ends", None), "token_ends")
        if (text is None) != (ends is None):
            raise DataError("one of the columns text and token_ends is NULL or missing; expected both or neither")
        fields["token_ids"] = _integers(fields.get("token_ids"), "token_ids")
        for name in _FLOAT_ARRAYS:
            if isinstance(values := fields.get(name), np.ma.MaskedArray):
                fields[name] = np.where(values.mask, np.nan, values.data)  # `filled` takes five times as long
        return Trajectory(
            segments=tuple(map(_segment, *self._slices("segments", i))),
            calls=tuple(map(_tool_call, *self._slices("calls", i))),
            token_texts=None if text is None or ends is None else TokenTexts(text, ends),
            metadata=decode_metadata(fields.pop("metadata", None) or "{}"),
            **{name: value for name, value in fields.items() if value is not None},
        )

    def _slices(self, name: str, i: int) -> list[list[Any]]:
        start, stop = self._cuts[name][i : i + 2]
        return [values[start:stop] for values in self._nested[name].values()]

    def _validate(self, i: int) -> None:
        """Check the fields of a row one by one, as those of a record are."""
        row = {name: values[i] for name, values in self._columns.items() if name in STRUCTURE and name != "metadata"}
        row["golden_answers"] = list(row["golden_answers"])
        for name, fields in self._nested.items():
            items = [dict(zip(fields, item, strict=True)) for item in zip(*self._slices(name, i), strict=True)]
            row[name] = None if self._lengths[name][i] is None else items
        given = {name: value for name, value in row.items() if value is not None or name in REQUIRED}
        given["schema_version"] = SCHEMA_VERSION
        try:
            msgspec.convert(given, TraceRecord)
        except msgspec.ValidationError as error:
            raise DataError(field_message(error)) from error


def _lists(fields: Columns, names: Iterable[str]) -> dict[str, list[Any]]:
    return {name: fields[name].tolist() if fields else [] for name in names}


def _integers(values: NDArray[Any] | None, name: str) -> NDArray[Any] | None:
    if isinstance(values, np.ma.MaskedArray):
        raise DataError(f"column {name} holds NULL; expected an integer a token")
    return values


def _segment(kind: str, start: int, stop: int, turn: int, text: str | None) -> Segment:
    return Segment(kind=_KINDS[kind], start=start, stop=stop, turn=turn, text=text)


def _tool_call(
    id: str, name: str, arguments: str, turn: int, result: str | None, status: str, duration_s: float | None
) -> ToolCall:
    return ToolCall(
        id=id, name=name, arguments=arguments, turn=turn, result=result, status=_STATUSES[status], duration_s=duration_s
    )

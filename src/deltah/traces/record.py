"""The versioned record: one `Trajectory` as one JSON object, exact to the last bit.

`from_record(to_record(t))` equals t, also through strict JSON: floats travel in their shortest decimal form that reads
back to the same float64. Strict JSON has no NaN and no infinity, so

* in a per-token array null is NaN ("not measured"), "inf" and "-inf" are the infinities (an unknown upper bound);
* a single number (temperature, duration, a metadata value) that is not finite is {"float": "nan" | "inf" | "-inf"},
  because there null is None and a string is a string.

Fields at their default are left out. Text that UTF-8 cannot hold (a lone surrogate) is written as U+FFFD; that is the
one thing a round trip through bytes may change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

import msgspec
import numpy as np

from deltah.core.types import (
    CallStatus,
    Estimator,
    FloatArray,
    IntArray,
    Scalar,
    Segment,
    SegmentKind,
    SpanQuality,
    StopReason,
    ToolCall,
    Trajectory,
)
from deltah.errors import DataError, InvalidValueError
from deltah.traces.decode import decode_line, replace_surrogates
from deltah.traces.importing import IMPORTERS, RecordContext

SCHEMA_VERSION = 1
"""Version written; every version from 1 to this one is read."""

Element: TypeAlias = float | Literal["inf", "-inf"] | None
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


class NonFinite(msgspec.Struct, frozen=True):
    """A single number that JSON cannot write."""

    float: Literal["nan", "inf", "-inf"]


Number: TypeAlias = float | NonFinite | None


class SegmentRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Mirror of `Segment`."""

    kind: SegmentKind
    start: Count
    stop: Count
    turn: Count
    text: str | None = None


class CallRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Mirror of `ToolCall`."""

    id: str
    name: str
    arguments: str
    turn: int
    result: str | None = None
    status: CallStatus = CallStatus.OK
    duration_s: Number = None


class TraceRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Mirror of `Trajectory`; arrays of T numbers are lists."""

    schema_version: int
    id: str
    group_id: str | None = None
    model: str | None = None
    question: str | None = None
    prediction: str | None = None
    golden_answers: list[str] = []
    outcome: float | None = None
    stop_reason: StopReason = StopReason.UNKNOWN
    estimator: Estimator = Estimator.NONE
    temperature: Number = None
    spans: SpanQuality = SpanQuality.EXACT
    metadata: dict[str, str | int | float | bool | NonFinite | None] = {}
    segments: list[SegmentRecord]
    calls: list[CallRecord] = []
    entropy: list[Element] | None = None
    entropy_lower: list[Element] | None = None
    entropy_upper: list[Element] | None = None
    logprobs: list[Element] | None = None
    token_ids: list[int] | None = None
    token_texts: list[str] | None = None


class _Header(msgspec.Struct):
    """The one field that every version of the record has."""

    schema_version: int = 0


_DECODER = msgspec.json.Decoder(TraceRecord)
_METADATA_DECODER = msgspec.json.Decoder(dict[str, str | int | float | bool | NonFinite | None])
_HEADER_DECODER = msgspec.json.Decoder(_Header)
_ENCODER = msgspec.json.Encoder()


def to_record(trajectory: Trajectory) -> TraceRecord:
    """Mirror a trajectory field by field."""
    return TraceRecord(
        schema_version=SCHEMA_VERSION,
        id=trajectory.id,
        group_id=trajectory.group_id,
        model=trajectory.model,
        question=trajectory.question,
        prediction=trajectory.prediction,
        golden_answers=list(trajectory.golden_answers),
        outcome=trajectory.outcome,
        stop_reason=trajectory.stop_reason,
        estimator=trajectory.estimator,
        temperature=_number(trajectory.temperature),
        spans=trajectory.spans,
        metadata={key: _scalar(value) for key, value in trajectory.metadata.items()},
        segments=[
            SegmentRecord(kind=s.kind, start=s.start, stop=s.stop, turn=s.turn, text=s.text)
            for s in trajectory.segments
        ],
        calls=[_call_record(call) for call in trajectory.calls],
        entropy=_elements(trajectory.entropy),
        entropy_lower=_elements(trajectory.entropy_lower),
        entropy_upper=_elements(trajectory.entropy_upper),
        logprobs=_elements(trajectory.logprobs),
        token_ids=None if trajectory.token_ids is None else trajectory.token_ids.tolist(),
        token_texts=None if trajectory.token_texts is None else list(trajectory.token_texts),
    )


def from_record(record: TraceRecord) -> Trajectory:
    """Rebuild the trajectory.

    Raises:
        DataError: if the version is not one this release reads, or the fields contradict each other.
    """
    check_version(record.schema_version)
    try:
        return Trajectory(
            id=record.id,
            group_id=record.group_id,
            model=record.model,
            question=record.question,
            prediction=record.prediction,
            golden_answers=tuple(record.golden_answers),
            outcome=record.outcome,
            stop_reason=record.stop_reason,
            estimator=record.estimator,
            temperature=_float(record.temperature),
            spans=record.spans,
            metadata={key: _plain(value) for key, value in record.metadata.items()},
            segments=tuple(
                Segment(kind=s.kind, start=s.start, stop=s.stop, turn=s.turn, text=s.text) for s in record.segments
            ),
            calls=tuple(_tool_call(call) for call in record.calls),
            entropy=_array(record.entropy),
            entropy_lower=_array(record.entropy_lower),
            entropy_upper=_array(record.entropy_upper),
            logprobs=_array(record.logprobs),
            token_ids=_int_array(record.token_ids),
            token_texts=None if record.token_texts is None else tuple(record.token_texts),
        )
    except InvalidValueError as error:
        raise DataError(str(error)) from error


def encode(trajectory: Trajectory) -> bytes:
    """One line of strict JSON in UTF-8, without the newline; text is never written with a raw line break."""
    record = to_record(trajectory)
    try:
        return _ENCODER.encode(record)
    except UnicodeEncodeError:
        return _ENCODER.encode(replace_surrogates(msgspec.to_builtins(record)))


def decode(line: bytes) -> Trajectory:
    """Read one line that `encode` wrote.

    Raises:
        DataError: if the line is not such a record, or is of a version that this release does not read.
    """
    try:
        record = decode_line(line, _DECODER)
    except DataError:
        # A newer version may have other fields; then the version is the reason to give, not the field.
        check_version(decode_line(line, _HEADER_DECODER).schema_version or SCHEMA_VERSION)
        raise
    return from_record(record)


def encode_metadata(metadata: Mapping[str, Scalar]) -> str:
    """The object that stands under `metadata` in a record, as JSON text."""
    plain = {key: _scalar(value) for key, value in metadata.items()}
    try:
        return _ENCODER.encode(plain).decode()
    except UnicodeEncodeError:
        return _ENCODER.encode(replace_surrogates(msgspec.to_builtins(plain))).decode()


def decode_metadata(text: str) -> dict[str, Scalar]:
    """Read what `encode_metadata` wrote.

    Raises:
        DataError: if it is not such an object.
    """
    return {key: _plain(value) for key, value in decode_line(text.encode(), _METADATA_DECODER).items()}


@IMPORTERS.register("deltah", meaning="Traces that deltah wrote", fields=("schema_version",), schema=bytes)
def read(line: bytes, context: RecordContext) -> Trajectory:
    """Read one line that `encode` wrote, which says everything of itself; errors as in `decode`."""
    del context
    return decode(line)


def check_version(version: int) -> None:
    """Refuse a record of a version that this release does not read.

    Raises:
        DataError: naming the version.
    """
    if not 1 <= version <= SCHEMA_VERSION:
        read = "version 1" if SCHEMA_VERSION == 1 else f"versions 1 to {SCHEMA_VERSION}"
        raise DataError(
            f"field schema_version: the record is of version {version}, this release of deltah reads {read}; "
            "upgrade deltah, or write the traces again with this release"
        )


def _call_record(call: ToolCall) -> CallRecord:
    return CallRecord(
        id=call.id,
        name=call.name,
        arguments=call.arguments,
        turn=call.turn,
        result=call.result,
        status=call.status,
        duration_s=_number(call.duration_s),
    )


def _tool_call(record: CallRecord) -> ToolCall:
    return ToolCall(
        id=record.id,
        name=record.name,
        arguments=record.arguments,
        turn=record.turn,
        result=record.result,
        status=record.status,
        duration_s=_float(record.duration_s),
    )


def _non_finite(value: float) -> NonFinite:
    if math.isnan(value):
        return NonFinite(float="nan")
    return NonFinite(float="inf" if value > 0 else "-inf")


def _number(value: float | None) -> Number:
    return value if value is None or math.isfinite(value) else _non_finite(value)


def _float(value: Number) -> float | None:
    return float(value.float) if isinstance(value, NonFinite) else value


def _scalar(value: Scalar) -> Scalar | NonFinite:
    return _non_finite(value) if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Scalar | NonFinite) -> Scalar:
    return float(value.float) if isinstance(value, NonFinite) else value


def _elements(values: FloatArray | None) -> list[Element] | None:
    if values is None:
        return None
    listed: list[Element] = values.tolist()
    if not np.isfinite(values).all():
        # NaN first: numpy finds the few indices, so a long finite array costs nothing.
        for t in np.flatnonzero(np.isnan(values)):
            listed[t] = None
        for t in np.flatnonzero(np.isinf(values)):
            listed[t] = "inf" if values[t] > 0 else "-inf"
    return listed


def _array(values: list[Element] | None) -> FloatArray | None:
    # numpy reads None as NaN and "inf" as infinity when the type is stated.
    return None if values is None else np.array(values, dtype=np.float64)


def _int_array(values: list[int] | None) -> IntArray | None:
    try:
        return None if values is None else np.array(values, dtype=np.int64)
    except OverflowError as error:
        raise DataError("field token_ids: a token id does not fit into 64 bits") from error

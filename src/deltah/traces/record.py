"""The versioned record: one `Trajectory` as one JSON object, exact to the last bit.

Strict JSON has no NaN and no infinity. In a per-token array null is NaN ("not measured"), "inf" and "-inf" are the
infinities (an unknown upper bound); any other number that is not finite is {"float": "nan" | "inf" | "-inf"}. Fields at
their default are left out. Text that UTF-8 cannot hold (a lone surrogate) is written as U+FFFD. The columns of a
Parquet file follow from the same declarations (`deltah.traces.parquet`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from deltah.core.types import (
    CallStatus,
    Estimator,
    Scalar,
    Segment,
    SegmentKind,
    SpanQuality,
    StopReason,
    ToolCall,
    Trajectory,
)
from deltah.errors import DataError, InvalidValueError
from deltah.jsonlines import compressed
from deltah.traces.importing import IMPORTERS, RecordContext, decode_line, replace_surrogates

SCHEMA_VERSION = 1
"""Version written; every version from 1 to this one is read."""

Element: TypeAlias = float | Literal["inf", "-inf"] | None
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


class NonFinite(msgspec.Struct, frozen=True):
    """A single number that JSON cannot write."""

    float: Literal["nan", "inf", "-inf"]


Number: TypeAlias = float | NonFinite | None
Metadata: TypeAlias = dict[str, str | int | float | bool | NonFinite | None]


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
    metadata: Metadata = {}
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


ARRAYS: Final = ("entropy", "entropy_lower", "entropy_upper", "logprobs", "token_ids")
"""Fields with one number per token."""
_DECODER = msgspec.json.Decoder(TraceRecord)
_HEADER_DECODER = msgspec.json.Decoder(_Header)
_METADATA_DECODER = msgspec.json.Decoder(Metadata)
_ENCODER = msgspec.json.Encoder()


def to_record(trajectory: Trajectory, *, per_token: bool = True) -> TraceRecord:
    """Mirror of a trajectory, field by field, with or without its arrays and token texts."""
    fields = {name: getattr(trajectory, name) for name in TraceRecord.__struct_fields__ if name != "schema_version"}
    for name in (*ARRAYS, "token_texts"):
        fields[name] = _elements(fields[name]) if per_token and fields[name] is not None else None
    fields |= {
        "schema_version": SCHEMA_VERSION,
        "golden_answers": list(trajectory.golden_answers),
        "temperature": _number(trajectory.temperature),
        "metadata": {key: _number(value) for key, value in trajectory.metadata.items()},
        "segments": [_mirror(SegmentRecord, segment) for segment in trajectory.segments],
        "calls": [_mirror(CallRecord, call) for call in trajectory.calls],
    }
    return TraceRecord(**fields)


def from_record(record: TraceRecord, **read: Any) -> Trajectory:
    """Trajectory of a record, and of fields that were read elsewhere; `DataError` if they contradict each other."""
    check_version(record.schema_version)
    fields = msgspec.structs.asdict(record)
    del fields["schema_version"]
    fields |= {
        "golden_answers": tuple(record.golden_answers),
        "temperature": _plain(record.temperature),
        "metadata": {key: _plain(value) for key, value in record.metadata.items()},
    }
    try:
        for name in ARRAYS:
            if fields[name] is not None:
                fields[name] = np.array(fields[name], dtype=np.int64 if name == "token_ids" else np.float64)
        segments = tuple(Segment(**msgspec.structs.asdict(segment)) for segment in record.segments)
        calls = tuple(
            ToolCall(**msgspec.structs.asdict(call) | {"duration_s": _plain(call.duration_s)}) for call in record.calls
        )
        return Trajectory(**fields | {"segments": segments, "calls": calls} | read)
    except InvalidValueError as error:
        raise DataError(str(error)) from error
    except OverflowError as error:
        raise DataError("field token_ids: a token id does not fit into 64 bits") from error


def encode(trajectory: Trajectory) -> bytes:
    """One line of strict JSON in UTF-8, without the newline."""
    return to_json(to_record(trajectory))


def to_json(value: Any) -> bytes:
    """JSON of a record or a part of one, without lone surrogates."""
    try:
        return _ENCODER.encode(value)
    except UnicodeEncodeError:
        return _ENCODER.encode(replace_surrogates(msgspec.to_builtins(value)))


def decode(line: bytes, **read: Any) -> Trajectory:
    """Read one line that `encode` wrote; `DataError` if it is not one, or of a newer version."""
    try:
        record = decode_line(line, _DECODER)
    except DataError:
        # A newer version may have other fields; then the version is the reason to give, not the field.
        check_version(decode_line(line, _HEADER_DECODER).schema_version or SCHEMA_VERSION)
        raise
    return from_record(record, **read)


def decode_metadata(text: str) -> dict[str, Scalar]:
    """Read the object that stands under `metadata` in a record."""
    return {key: _plain(value) for key, value in decode_line(text.encode(), _METADATA_DECODER).items()}


@IMPORTERS.register("deltah", meaning="Traces that deltah wrote", fields=("schema_version",), schema=bytes)
def read(line: bytes, _: RecordContext) -> Trajectory:
    """Read one line that `encode` wrote."""
    return decode(line)


def check_version(version: int, where: str = "") -> None:
    """Refuse a record of a version that this release does not read; the message begins with `where`."""
    if not 1 <= version <= SCHEMA_VERSION:
        raise DataError(
            f"{where}field schema_version: the record is of version {version}, this release of deltah reads version "
            f"{SCHEMA_VERSION}; upgrade deltah, or write the traces again with this release"
        )


def write_traces(path: str | os.PathLike[str], trajectories: Iterable[Trajectory]) -> int:
    """Write trajectories to a file, atomically: the old file stays whole until the new one is.

    Args:
        path: `.parquet` gives a Parquet file, any other name JSON lines, compressed if it ends in `.gz` or `.zst`.
            Missing parent folders are made.
        trajectories: Consumed one at a time.

    Returns:
        The number written.

    Raises:
        DataError: if the file cannot be written (no space, no permission).
    """
    target = Path(path)
    if target.suffix == ".parquet":
        from deltah.traces.parquet import write_parquet  # which follows from the record above

        return write_parquet(target, trajectories)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    count = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as raw:
            with compressed(raw, target.suffix) as stream:
                for trajectory in trajectories:
                    stream.write(encode(trajectory) + b"\n")
                    count += 1
            raw.flush()
            os.fsync(raw.fileno())
        temporary.replace(target)
    except OSError as error:
        raise DataError(
            f"cannot write {target}: {error.strerror or error}; the file there, if any, is as it was"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return count


class TraceWriter:
    """Append trajectories to a plain (not compressed) JSON-lines file as they are made, one flushed line each.

    A process killed at any moment loses at most the line it was writing; the next writer starts on a new line, so that
    the damaged one stays a single `ReadProblem`.

        with TraceWriter("run/traces.jsonl") as writer:
            writer.write(trajectory)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open, or create, the file; `DataError` if that fails."""
        self.path = Path(path)
        self.n_written = 0
        if self.path.suffix in (".gz", ".zst"):
            raise InvalidValueError(f"cannot append to {self.path}: write plain .jsonl, or use write_traces at the end")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
            if self._file.seek(0, os.SEEK_END):
                self._file.seek(-1, os.SEEK_END)
                if self._file.read(1) != b"\n":
                    self._file.write(b"\n")
        except OSError as error:
            raise DataError(f"cannot append to {self.path}: {error.strerror or error}") from error

    def write(self, trajectory: Trajectory) -> None:
        """Append one trajectory and flush it to the operating system; `DataError` if the disk is full."""
        try:
            self._file.write(encode(trajectory) + b"\n")
            self._file.flush()
        except OSError as error:
            raise DataError(f"cannot append to {self.path}: {error.strerror or error}") from error
        self.n_written += 1

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _mirror(record: type[Any], value: Segment | ToolCall) -> Any:
    return record(**{name: _number(getattr(value, name)) for name in record.__struct_fields__})


def _number(value: Any) -> Any:
    """A value that JSON can write."""
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return NonFinite(float="nan" if math.isnan(value) else "inf" if value > 0 else "-inf")


def _plain(value: Any) -> Any:
    """The value that `_number` stands for."""
    return float(value.float) if isinstance(value, NonFinite) else value


def _elements(values: NDArray[Any] | Sequence[str]) -> list[Any]:
    """Texts, or numbers of an array with infinities as texts; msgspec writes NaN as null."""
    if not isinstance(values, np.ndarray):
        return list(values)
    listed: list[Any] = values.tolist()
    for t in np.flatnonzero(np.isinf(values)):
        listed[t] = "inf" if values[t] > 0 else "-inf"
    return listed

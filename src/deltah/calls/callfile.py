"""Scored calls as a file: one row a call, written as the calls stream by, as JSON lines, CSV or Parquet.

The row is `CallRecord`. What was not measured is null (an empty cell in CSV), and so is a bound that is not known: the
upper bound of a log without a vocabulary size. A file is written under a temporary name and renamed when complete.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np

from deltah.calls.waste import Waste, WasteLevel, waste_level
from deltah.core.signal_types import Signal, Verdict
from deltah.core.types import CallStatus, Estimator, SegmentKind, SpanQuality, Trajectory
from deltah.database import import_duckdb
from deltah.errors import ConfigError, DataError, InvalidValueError


class CallRecord(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One call of one trajectory; entropies in nats."""

    trajectory: str
    question: str | None
    call: str
    index: int
    """Counted from 1 within the trajectory."""
    tool: str
    arguments: str
    status: CallStatus
    round: int
    """k = 1 ... R; the calls of one turn share it, and its ΔH."""
    calls_in_round: int
    signal: str | None
    """Name of the signal behind `delta_h`; null for a trajectory without entropies, as all numbers below."""
    delta_h: float | None
    lower: float | None
    upper: float | None
    label: Verdict | None
    entropy_before: float | None
    """H(r_{k-1})."""
    entropy_after: float | None
    """H(r_k)."""
    tokens_before: int | None
    """Tokens that H(r_{k-1}) pools."""
    tokens_after: int | None
    waste: list[Waste] | None
    """Null where nobody looked for waste."""
    verdict: WasteLevel | None
    """Waste and label together: certified, likely, hint or none."""
    call_tokens: int | None
    """Sampled tokens that spell the round's calls; null where the log does not have them."""
    result_chars: int | None
    """Length of the result; null for an unanswered call."""
    duration_s: float | None
    outcome: float | None
    estimator: Estimator
    temperature: float | None
    spans: SpanQuality


FIELDS: tuple[str, ...] = CallRecord.__struct_fields__
_NUMBERS = ("delta_h", "lower", "upper", "entropy_before", "entropy_after", "duration_s", "outcome", "temperature")
_COUNTS = ("index", "round", "calls_in_round", "tokens_before", "tokens_after", "call_tokens", "result_chars")
SQL_TYPES = (
    dict.fromkeys(FIELDS, "VARCHAR")
    | dict.fromkeys(_NUMBERS, "DOUBLE")
    | dict.fromkeys(_COUNTS, "BIGINT")
    | {"waste": "VARCHAR[]"}
)
"""Columns of the Parquet file."""


def call_records(
    trajectory: Trajectory, signal: Signal | None, wastes: Sequence[frozenset[Waste]] | None
) -> Iterator[CallRecord]:
    """Rows of a trajectory's calls, in the order they were issued.

    Args:
        trajectory: C calls.
        signal: None for one without entropies.
        wastes: (C,) what `waste_of_calls` says of it; None: nobody looked for waste.

    Raises:
        InvalidValueError: if `wastes` speaks of another number of calls.
    """
    spelled = _call_tokens(trajectory)
    measured = _measured(signal) if signal is not None else [_UNMEASURED] * trajectory.n_calls
    if wastes is not None and len(wastes) != trajectory.n_calls:
        raise InvalidValueError(f"got the waste of {len(wastes)} calls for {trajectory.n_calls}; give one for each")
    for i, call in enumerate(trajectory.calls):
        k = int(trajectory.round_of_call[i])
        waste = None if wastes is None else wastes[i]
        yield CallRecord(
            trajectory=trajectory.id,
            question=trajectory.question,
            call=call.id,
            index=i + 1,
            tool=call.name,
            arguments=call.arguments,
            status=call.status,
            round=k + 1,
            calls_in_round=len(trajectory.rounds[k].calls),
            waste=None if waste is None else sorted(waste),
            verdict=None if waste is None else waste_level(waste, measured[i]["label"]),
            call_tokens=spelled.get(call.turn),
            result_chars=None if call.result is None else len(call.result),
            duration_s=call.duration_s,
            outcome=trajectory.outcome,
            estimator=trajectory.estimator,
            temperature=trajectory.temperature,
            spans=trajectory.spans,
            **measured[i],
        )


def _call_tokens(trajectory: Trajectory) -> dict[int, int]:
    """Tokens that spell calls, by turn."""
    found: dict[int, int] = {}
    for segment in trajectory.segments:
        if segment.kind is SegmentKind.CALL and segment.n_tokens:
            found[segment.turn] = found.get(segment.turn, 0) + segment.n_tokens
    return found


_UNMEASURED: dict[str, Any] = dict.fromkeys(
    ("signal", "delta_h", "lower", "upper", "label", "entropy_before", "entropy_after", "tokens_before", "tokens_after")
)


def _measured(signal: Signal) -> list[dict[str, Any]]:
    """What was measured of each call; an unanswered one has no value, whatever its round has."""
    return [
        {
            "signal": signal.name,
            "delta_h": _finite(value),
            "lower": _finite(lower),
            "upper": _finite(upper),
            "label": label,
            "entropy_before": _finite(signal.segment_entropy[k]),
            "entropy_after": _finite(signal.segment_entropy[k + 1]),
            "tokens_before": int(signal.segment_tokens[k]),
            "tokens_after": int(signal.segment_tokens[k + 1]),
        }
        for k, value, lower, upper, label in zip(
            signal.round_of_call.tolist(),
            signal.call_value,
            signal.call_lower,
            signal.call_upper,
            signal.call_verdicts,
            strict=True,
        )
    ]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def json_lines(records: Iterable[CallRecord]) -> bytes:
    """Rows as JSON lines."""
    return b"".join(_json_line(record) for record in records)


def csv_lines(records: Iterable[CallRecord]) -> bytes:
    """Rows as CSV, without the header."""
    return _csv([v if not isinstance(v, list) else "|".join(v) for v in msgspec.structs.astuple(r)] for r in records)


def encoder_of(path: Path) -> Callable[[Iterable[CallRecord]], bytes]:
    """How the rows of a file are written; Parquet is made from JSON lines at the end.

    Raises:
        ConfigError: if the name has another ending than `.jsonl`, `.csv` or `.parquet`.
    """
    if path.suffix not in _ENCODERS:
        raise ConfigError(f"--out {path}: expected a name that ends in .jsonl, .csv or .parquet")
    return _ENCODERS[path.suffix]


_ENCODERS = {".jsonl": json_lines, ".csv": csv_lines, ".parquet": json_lines}
_JSON = msgspec.json.Encoder()


def _json_line(record: CallRecord) -> bytes:
    try:
        return _JSON.encode(record) + b"\n"
    except UnicodeEncodeError:  # a lone surrogate, which no UTF-8 file can hold
        plain = msgspec.structs.asdict(record)
        return _JSON.encode({k: _replaced(v) for k, v in plain.items()}) + b"\n"


def _csv(rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", errors="replace")


def _replaced(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


class CallWriter:
    """Writes calls to `.jsonl`, `.csv` or `.parquet`; the file appears when the block ends without an error."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a temporary file beside the target.

        Raises:
            ConfigError: for another ending.
            MissingDependencyError: if Parquet is asked for and duckdb is not installed.
            DataError: if the folder cannot be written.
        """
        self.path = Path(path)
        self.n_written = 0
        self.encode = encoder_of(self.path)
        self._parquet = self.path.suffix == ".parquet"
        if self._parquet:
            import_duckdb("Writing a Parquet file")
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._temporary.open("wb")
            self._file.write(_csv([FIELDS]) if self.path.suffix == ".csv" else b"")
        except OSError as error:
            raise self._failed(error) from error

    def write(self, rows: bytes, count: int) -> None:
        """Append rows that `encode` made.

        Raises:
            DataError: if the disk is full.
        """
        try:
            self._file.write(rows)
        except OSError as error:
            raise self._failed(error) from error
        self.n_written += count

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete the file, or remove what there is of it after an error."""
        try:
            self._file.flush()
            self._file.close()
            if kind is None:
                if self._parquet:
                    self._convert()
                self._temporary.replace(self.path)
        except OSError as failure:
            raise self._failed(failure) from failure
        finally:
            self._temporary.unlink(missing_ok=True)

    def _convert(self) -> None:
        """Rewrite the temporary JSON lines as Parquet; the database streams, so memory stays constant."""
        duckdb = import_duckdb("Writing a Parquet file")
        packed = self._temporary.with_suffix(".parquet")
        columns = ", ".join(f"{name}: '{kind}'" for name, kind in SQL_TYPES.items())
        source = (
            f"read_json($file, format = 'newline_delimited', columns = {{{columns}}}, maximum_object_size = 1 << 30)"
        )
        target = str(packed).replace("'", "''")
        try:
            with duckdb.connect() as database:
                database.execute(
                    f"COPY (FROM {source}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)",
                    {"file": str(self._temporary)},
                )
            packed.replace(self._temporary)
        except duckdb.Error as error:
            raise DataError(f"cannot write {self.path}: {error}") from error
        finally:
            packed.unlink(missing_ok=True)

    def _failed(self, error: OSError) -> DataError:
        return DataError(
            f"cannot write {self.path}: {error.strerror or error}; choose another place or free some space"
        )

"""JSON of records: strict decoding with one lenient second try, and fields that several formats share.

Python's `json` writes NaN and Infinity, and JavaScript writes lone surrogates; strict JSON has neither. A line that the
fast strict decoder refuses is read once more by the standard library, with bytes that are not UTF-8 and lone surrogates
replaced by U+FFFD. A line whose JSON is sound but whose fields are wrong is not retried.

Fields that describe a trajectory and carry nothing that is measured on it are read with patience: a value that does not
fit is None or left out, never an error.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec

from deltah.core.types import Scalar
from deltah.errors import DataError

T = TypeVar("T")

ANSWER_FIELDS: Final = ("golden_answers", "answer", "solution", "ground_truth")
"""Names under which logs give accepted answers; here and below the first that is there counts."""
OUTCOME_FIELDS: Final = ("outcome", "accuracy_reward", "reasoning_accuracy_reward")
"""Names of columns that hold the grader's score."""
SESSION_FIELDS: Final = ("session_id", "conversation_id", "thread_id", "trace_id")
"""Names of the id under which a client groups the API calls of one conversation."""
UNFIT_OUTCOME: Final = "score_outside_0_1"
"""Metadata key: a grade that is no outcome, because it lies outside [0, 1]."""
DURATION_FROM: Final = "duration_s_from"
"""Metadata key: where durations of calls come from that no line states."""
GAP: Final = "gap between API calls"
"""Value of `DURATION_FROM`: the client's own work, or a person's pause, is in those durations."""
_INT64 = 2**63
_EPOCH_UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
"""Least time since 1970 that is one in nano-, micro- and milliseconds, and how many of these a second has.

Each lies between 1973 in its own unit and the year 5138 in the next longer one."""
NOT_JSON = "not valid JSON"
"""How the reason begins why a line is none."""
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def decode_line(line: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Decode one JSON line.

    Args:
        line: The JSON text, without need of a trailing newline.
        decoder: Holds the expected type.

    Raises:
        DataError: if the line is not JSON, or a field is missing or has another type; the message names the field.
    """
    try:
        return decoder.decode(line)
    except msgspec.ValidationError as error:
        raise DataError(field_message(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _decode_leniently(line, decoder.type)
    except RecursionError as error:
        raise DataError("the JSON is nested too deeply to be a trace") from error


def convert(value: Any, wanted: type[T]) -> T:
    """A decoded JSON value as a typed record.

    Raises:
        DataError: if a field is missing or has another type; the message names the field.
    """
    try:
        return msgspec.convert(value, wanted)
    except msgspec.ValidationError as error:
        raise DataError(field_message(error)) from error


def replace_surrogates(value: Any) -> Any:
    """Copy of a JSON-like value with every lone surrogate, keys included, replaced by U+FFFD."""
    if isinstance(value, str):
        return _LONE_SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [replace_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {replace_surrogates(key): replace_surrogates(item) for key, item in value.items()}
    return value


def _decode_leniently(line: bytes, wanted: type[T]) -> T:
    try:
        value = replace_surrogates(json.loads(line.decode("utf-8", errors="replace")))
        return msgspec.convert(value, wanted)
    except msgspec.ValidationError as error:
        raise DataError(field_message(error)) from error
    except ValueError as error:
        raise DataError(f"{NOT_JSON} ({error}); expected one JSON object on each line") from error
    except RecursionError as error:
        raise DataError("the JSON is nested too deeply to be a trace") from error


def field_message(error: msgspec.ValidationError) -> str:
    """Put msgspec's path first: `field messages[2].content: expected ...`."""
    what, _, path = str(error).partition(" - at `")
    field = path.rstrip("`").removeprefix("$").removeprefix(".")
    what = what[:1].lower() + what[1:]
    return f"field {field}: {what}" if field else what


def scalars(values: Mapping[str, Any], *, leave_out: frozenset[str] = frozenset()) -> dict[str, Scalar]:
    """Flat values for `Trajectory.metadata`; lists, objects and the names in `leave_out` are dropped."""
    return {
        key: _fitting(value)
        for key, value in values.items()
        if key not in leave_out and (value is None or isinstance(value, str | int | float))
    }


def outcome_of(value: Any) -> float | None:
    """A truth value or a number in [0, 1] as an outcome; None for anything else, NaN included."""
    if not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= 1 else None


def unfit_outcome(value: Any) -> dict[str, Scalar]:
    """Metadata that keeps a grade which is a number, but none in [0, 1]; else nothing."""
    number = finite(float(value) if isinstance(value, bool) else value)
    return {UNFIT_OUTCOME: number} if number is not None and outcome_of(number) is None else {}


def golden_answers(value: Any) -> tuple[str, ...]:
    """Accepted answers from a text, a number, a list of them, or an object that holds them under "target"."""
    if isinstance(value, Mapping) and "target" in value:
        value = value["target"]
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    listed = value if isinstance(value, list) else [value]
    return tuple(_text(item) for item in listed if item is not None)


def prompt_group(step: int | None, prompt: object) -> str:
    """Group of the trajectories that answer one prompt at one training step.

    Args:
        step: Training step; None where unknown.
        prompt: Text, messages or token ids as JSON values.
    """
    digest = hashlib.blake2b(_text(prompt).encode("utf-8", errors="replace"), digest_size=6).hexdigest()
    return digest if step is None else f"step-{step}/{digest}"


def _text(value: object) -> str:
    """A text as it is, any other JSON value as JSON."""
    try:
        return value if isinstance(value, str) else json.dumps(value)
    except RecursionError as error:
        raise DataError("the JSON is nested too deeply to be a trace") from error


def _fitting(value: Scalar) -> Scalar:
    """Integers beyond 64 bits, which our record cannot hold, as text."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if whole and not -_INT64 <= value < _INT64 else value  # type: ignore[operator]


def finite(value: Any) -> float | None:
    """A finite number as a float; None for anything else."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and abs(value) < 1e300 and math.isfinite(value) else None


def seconds(value: Any) -> float:
    """A length of time that is stated in seconds; NaN for anything else."""
    number = finite(value)
    return math.nan if number is None else number


def epoch_seconds(value: Any) -> float:
    """A moment as seconds since 1970.

    Args:
        value: A number of seconds, milli-, micro- or nanoseconds since then, told apart by the magnitude; or a date and
            time as ISO 8601 writes them, in UTC where no zone is named. NaN for anything else.
    """
    moment = _of_date(value) if isinstance(value, str) else seconds(value)
    return next((moment / per_second for least, per_second in _EPOCH_UNITS if abs(moment) >= least), moment)


def _of_date(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text.strip())
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return math.nan

"""Importers: functions that turn one record of a log into a trajectory, each registered where it is defined.

A format of one's own is one function:

    @IMPORTERS.register("mine", meaning="Log of my agent", fields=("steps", "answer"))
    def read(record: dict[str, Any], context: RecordContext) -> Trajectory:
        return Trajectory(id=record.get("id", context.default_id), segments=..., calls=...)

What `register` takes beside the name and its meaning:

* `fields`: names that all stand in a record of the format, by which it is told from others; of several formats that
  fit, the one with the most fields counts. `response.output` is a name inside the object, or the first element of the
  list, at another. In place of a name may stand a tuple of names, of which one must be there. Without fields the format
  is never detected, only read where a user names it.
* `schema`: type that msgspec decodes the record into, by default `dict[str, Any]`; `bytes` leaves it undecoded.

An importer may also return a list of trajectories, an API call, which the reader joins with the others of its
conversation, or a chunk of a streamed response. It raises `DataError` for a record that does not fit; the reader counts
it, adds where it stands, and goes on. Fields that only describe a trajectory are read with patience by the functions
below: a value that does not fit is None or left out, never an error.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from deltah.core.registry import Entry, Registry
from deltah.core.types import Scalar, Trajectory
from deltah.errors import DataError, InvalidValueError
from deltah.traces.conversation import ApiCall, LoggedChunk
from deltah.traces.files import STDIN, Position

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordContext:
    """What an importer may need beside the record."""

    where: Position
    """File and number of the record."""
    vocab_size: int | None = None
    """V as the user states it, for records that do not; None: not stated."""

    @property
    def default_id(self) -> str:
        """Id of a trajectory whose record has none: file name and number."""
        return f"{'stdin' if self.where.file == STDIN else Path(self.where.file).name}:{self.where.number}"


Imported: TypeAlias = Trajectory | list[Trajectory] | ApiCall | LoggedChunk
Importer: TypeAlias = Callable[[Any, RecordContext], Imported]

IMPORTERS: Final[Registry[Importer]] = Registry("trace format")
"""Formats that can be read; `deltah.traces.importers` fills it."""

UNFIT_OUTCOME: Final = "score_outside_0_1"
"""Metadata key: a grade that is no outcome, because it lies outside [0, 1]."""
NOT_JSON: Final = "not valid JSON"
"""How the reason begins why a line is none."""
_EPOCH_UNITS: Final = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
"""Least time since 1970 that is one in nano-, micro- and milliseconds, and how many of these a second has."""
_TOO_DEEP: Final = "the JSON is nested too deeply to be a trace"
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_TOP_LEVEL: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RAW_PARTS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw] | list[msgspec.Raw] | str)
_EVENT: Final = re.compile(r"(?:\A|\n)data: *(\{.*)")
_ANY_OBJECT: Final = msgspec.json.Decoder(dict[str, Any])


def recognise(data: bytes) -> Entry[Importer] | None:
    """Format of one record, by its names alone; None for no known one, `DataError` for no JSON object."""
    record: dict[str, Any]
    try:
        record = _TOP_LEVEL.decode(data)  # values are skipped, not decoded
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        record = decode_line(data, _ANY_OBJECT)  # the lenient decoder cannot fill `Raw`
    known = [(entry, [_choices(field) for field in entry.options.get("fields", ())]) for entry in IMPORTERS.values()]
    fitting = [
        (entry, fields)
        for entry, fields in known
        if fields and all(any(_stands(name, record) for name in choices) for choices in fields)
    ]
    return max(fitting, key=lambda one: len(one[1]), default=(None, ()))[0]


def _stands(name: str, value: object) -> bool:
    """Whether a name stands in a JSON value; of a list, or the text of an event stream, its first element counts."""
    if isinstance(value, msgspec.Raw):
        try:
            value = _RAW_PARTS.decode(value)
            event = _EVENT.search(value) if isinstance(value, str) else None
            value = _RAW_PARTS.decode(event[1].encode()) if event is not None else value
        except (msgspec.ValidationError, msgspec.DecodeError, UnicodeError, RecursionError):
            return False
    if isinstance(value, list):
        return bool(value) and _stands(name, value[0])
    first, _, inside = name.partition(".")
    return isinstance(value, Mapping) and first in value and (not inside or _stands(inside, value[first]))


def detect(data: bytes) -> Entry[Importer]:
    """Format of one record; `DataError` if it has the fields of no known one."""
    found = recognise(data)
    if found is None:
        formats = ((name, map(_choices, entry.options.get("fields", ()))) for name, entry in IMPORTERS.items())
        known = "; ".join(f"{name}: {', '.join(' or '.join(map(repr, f)) for f in fields)}" for name, fields in formats)
        raise DataError(f"no known trace format; expected the fields of one ({known}), or a format that you name")
    return found


def import_record(entry: Entry[Importer], data: bytes, context: RecordContext) -> Imported:
    """What one record holds; `DataError` if it is not of the format."""
    schema = entry.options.get("schema", dict[str, Any])
    record = data if schema is bytes else decode_line(data, _decoder(schema))
    try:
        return entry.value(record, context)
    except KeyError as error:
        raise DataError(f"field {error.args[0]}: missing") from error
    except msgspec.ValidationError as error:
        raise DataError(_field_message(error)) from error
    except RecursionError as error:
        raise DataError(_TOO_DEEP) from error
    except InvalidValueError as error:  # the parts of its trajectory contradict each other
        raise error if isinstance(error, DataError) else DataError(str(error)) from error


def _choices(field: str | tuple[str, ...]) -> tuple[str, ...]:
    """Names of which one has to stand in a record."""
    return (field,) if isinstance(field, str) else field


@lru_cache
def _decoder(schema: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(schema)


def decode_line(line: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """One JSON record; `DataError` if it is not JSON, or names a field that is missing or has another type.

    Python's `json` writes NaN and Infinity, JavaScript lone surrogates, and strict JSON has neither: a line that the
    strict decoder refuses is read once more by the standard library, with U+FFFD for what is not UTF-8.
    """
    try:
        try:
            return decoder.decode(line)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, UnicodeDecodeError):
            value = replace_surrogates(json.loads(line.decode("utf-8", errors="replace")))
            converted: T = msgspec.convert(value, decoder.type)
            return converted
    except msgspec.ValidationError as error:
        raise DataError(_field_message(error)) from error
    except ValueError as error:
        raise DataError(f"{NOT_JSON} ({error}); expected one JSON object on each line") from error
    except RecursionError as error:
        raise DataError(_TOO_DEEP) from error


def replace_surrogates(value: Any) -> Any:
    """Copy of a JSON-like value with every lone surrogate, keys included, replaced by U+FFFD."""
    if isinstance(value, str):
        return _LONE_SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [replace_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {replace_surrogates(key): replace_surrogates(item) for key, item in value.items()}
    return value


def _field_message(error: msgspec.ValidationError) -> str:
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


def _fitting(value: Scalar) -> Scalar:
    """Integers beyond 64 bits, which our record cannot hold, as text."""
    return str(value) if isinstance(value, int) and not -(2**63) <= value < 2**63 else value


def outcome_of(value: Any) -> float | None:
    """A truth value or a number in [0, 1] as an outcome; None for anything else, NaN included."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None


def unfit_outcome(value: Any) -> dict[str, Scalar]:
    """Metadata that keeps a grade which is a number, but none in [0, 1]; else nothing."""
    number = finite(value)
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
    """Group of the trajectories that answer one prompt (text, messages or token ids) at one training step."""
    digest = hashlib.blake2b(_text(prompt).encode("utf-8", errors="replace"), digest_size=6).hexdigest()
    return digest if step is None else f"step-{step}/{digest}"


def _text(value: object) -> str:
    """A text as it is, any other JSON value as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def finite(value: Any) -> float | None:
    """A finite number as a float; None for anything else."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and abs(value) < 1e300 else None


def seconds(value: Any) -> float:
    """A length of time that is stated in seconds; NaN for anything else."""
    number = finite(value)
    return math.nan if number is None else number


def epoch_seconds(value: Any) -> float:
    """A moment as seconds since 1970; NaN for what is none.

    It is a number of seconds, milli-, micro- or nanoseconds since then, told apart by the magnitude; or a date and time
    as ISO 8601 writes them, in UTC where no zone is named.
    """
    moment = _of_date(value) if isinstance(value, str) else seconds(value)
    return next((moment / per_second for least, per_second in _EPOCH_UNITS if abs(moment) >= least), moment)


def _of_date(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text.strip())
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return math.nan

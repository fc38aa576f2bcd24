"""Importers: functions that turn one record of a log into a trajectory, each registered where it is defined.

`fields` are top-level names that all stand in a record of the format (of a tuple, one), and `sign` is a function of its
bytes, for formats that share their names with others; of several formats that fit, the one with the most counts, and
one without fields is never detected. `schema` is the type that msgspec decodes a record into, by default
`dict[str, Any]`; `bytes` leaves it undecoded. An importer may also return any number of trajectories, or what the
reader joins: an API call, a chunk of a streamed response, or spans. It raises `DataError` for a record that does not
fit; facts that only describe a trajectory are read by the functions below, which give None, or nothing, for a value
that does not fit.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import msgspec

from deltah.core.registry import Entry, Registry
from deltah.core.types import Scalar, Trajectory
from deltah.errors import DataError, InvalidValueError
from deltah.traces.conversation import ApiCall, LoggedChunk
from deltah.traces.files import Position
from deltah.traces.openai_schema import to_schema
from deltah.traces.unread import unread_format

if TYPE_CHECKING:
    from deltah.traces.spans import Span

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
        return self.where.default_id


Imported: TypeAlias = "Trajectory | tuple[Trajectory, ...] | ApiCall | LoggedChunk | list[Span]"
Importer: TypeAlias = Callable[[Any, RecordContext], Imported]

IMPORTERS: Final[Registry[Importer]] = Registry("trace format")
"""Formats that can be read; `deltah.traces.importers` fills it."""

GRADES: Final = ("outcome", "correct", "is_correct", "score", "reward")
"""Names under which logs state a grade, the most certain first."""
TOOL_KINDS: Final = "tool_kinds"
"""Metadata key: what the log's tool definitions say of each tool, as JSON; see `tool_kinds`."""
UNFIT_OUTCOME: Final = "score_outside_0_1"
"""Metadata key: a grade outside [0, 1], which is no outcome."""
NOT_JSON: Final = "not valid JSON"
"""Beginning of the reason that a damaged line gets."""
_EPOCH_UNITS: Final = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
"""Least magnitude of a time in nano-, micro- and milliseconds, and how many of these a second has."""
_TOO_DEEP: Final = "the JSON is nested too deeply to be a trace"
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_EVENT: Final = re.compile(r"(?:\A|\n)data: *(\{.*)")


def recognise(data: bytes) -> Entry[Importer] | None:
    """Format of one record, by its top-level names alone; None for no known one, `DataError` for no JSON object."""
    try:
        names = frozenset(_decoder(dict[str, msgspec.Raw]).decode(data))  # values are skipped, not decoded
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        names = frozenset(decode_line(data, _decoder(dict[str, object])))  # the lenient decoder cannot fill `Raw`
    best, most = None, -1
    for entry in IMPORTERS.values():
        fields = [(field,) if isinstance(field, str) else field for field in entry.options.get("fields", ())]
        sign = entry.options.get("sign")
        n_marks = sum(len(field) == 1 for field in fields) + (sign is not None)
        if fields and n_marks > most and not any(map(names.isdisjoint, fields)) and (sign is None or sign(data)):
            best, most = entry, n_marks
    return best


def holds(*paths: str) -> Callable[[bytes], bool]:
    """Sign of a format: whether one of these paths of names, such as `response.output`, leads to a value.

    A list, or the text of an event stream, is passed through its first element.
    """
    return lambda data: any(_leads(path.split("."), data) for path in paths)


def _leads(names: Sequence[str], data: bytes | msgspec.Raw) -> bool:
    try:
        value = _decoder(dict[str, msgspec.Raw] | list[msgspec.Raw] | str).decode(data)
    except msgspec.ValidationError:  # a number
        return False
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _leads(names, msgspec.json.encode(decode_line(bytes(data), _decoder(Any))))
    if isinstance(value, str):
        event = _EVENT.search(value)
        return event is not None and _leads(names, event[1].encode())
    if isinstance(value, list):
        return bool(value) and _leads(names, value[0])
    return names[0] in value and (len(names) == 1 or _leads(names[1:], value[names[0]]))


def detect(data: bytes) -> Entry[Importer]:
    """Format of one record; `DataError` for no known one, which names a format that is known and not read."""
    reason = (
        f"no known trace format; expected one of {', '.join(IMPORTERS)} (docs/formats.md), or a format that you name"
    )
    try:
        if (found := recognise(data)) is not None:
            return found
    except DataError as error:
        reason = str(error)
    raise DataError(unread_format(data) or reason)


def import_record(entry: Entry[Importer], data: bytes, context: RecordContext) -> Imported:
    """What one record holds; `DataError` if it is not of the format."""
    schema = entry.options.get("schema", dict[str, Any])
    record = data if schema is bytes else decode_line(data, _decoder(schema))
    try:
        found = entry.value(record, context)
    except KeyError as error:
        raise DataError(f"field {error.args[0]}: missing") from error
    except msgspec.ValidationError as error:
        raise DataError(_field_message(error)) from error
    except RecursionError as error:
        raise DataError(_TOO_DEEP) from error
    except InvalidValueError as error:  # the parts of its trajectory contradict each other
        raise error if isinstance(error, DataError) else DataError(str(error)) from error
    several = found if isinstance(found, tuple) else (found,)
    if not all(isinstance(one, Trajectory | ApiCall | LoggedChunk | list) for one in several):
        raise DataError(f"the importer {entry.name!r} returned a {type(found).__name__}; expected a Trajectory")
    return found


@lru_cache
def _decoder(schema: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(schema)


def decode_line(line: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """One JSON record; `DataError` if it is not JSON, or a field is missing or has another type.

    Python writes NaN and Infinity, JavaScript lone surrogates, and strict JSON has neither: a line that the strict
    decoder refuses is read once more by the standard library, with U+FFFD for what is not UTF-8.
    """
    try:
        try:
            return decoder.decode(line)
        except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError):
            pass  # messages are mended, and what is not JSON is read once more
        kind: Any = decoder.type  # releases of msgspec declare it in different ways
        mended: T = to_schema(replace_surrogates(json.loads(line.decode("utf-8", errors="replace"))), kind)
        return mended
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


def inside(value: Any, *names: str) -> Any:
    """What stands in a JSON value under these names, each inside the one before; None where there is nothing."""
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def scalars(values: Mapping[str, Any], *, leave_out: frozenset[str] = frozenset()) -> dict[str, Scalar]:
    """Flat values for `Trajectory.metadata`, integers beyond 64 bits as text; the names in `leave_out` are dropped."""
    return {
        key: str(value) if isinstance(value, int) and not -(2**63) <= value < 2**63 else value
        for key, value in values.items()
        if key not in leave_out and (value is None or isinstance(value, str | int | float))
    }


def outcome_of(value: Any) -> float | None:
    """A truth value or a number in [0, 1], also as text, as an outcome; None for anything else, NaN included."""
    value = _graded(value)
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None


def _graded(value: Any) -> Any:
    """A grade that is a text as its number or truth value; None for another text."""
    with suppress(ValueError):
        return float({"true": "1", "false": "0"}.get(value.lower(), value)) if isinstance(value, str) else value
    return None


def unfit_outcome(value: Any) -> dict[str, Scalar]:
    """Metadata that keeps a grade which is a number, but none in [0, 1]; else nothing."""
    number = finite(_graded(value))
    return {UNFIT_OUTCOME: number} if number is not None and outcome_of(number) is None else {}


def tool_kinds(definitions: Any) -> dict[str, Scalar]:
    """Metadata of tool definitions with MCP annotations (`readOnlyHint`, `idempotentHint`), as requests list them.

    A tool that is read-only and idempotent is a "read", one that is only read-only a "poll" (its answer may change by
    itself), any other with a hint a "write". Empty without annotations.
    """
    found: dict[str, str] = {}
    for definition in msgspec.to_builtins(definitions) if isinstance(definitions, list) else ():
        levels = [level for level in (definition, inside(definition, "function")) if isinstance(level, Mapping)]
        name = next((level["name"] for level in levels if isinstance(level.get("name"), str)), None)
        hints = next((h for level in levels if isinstance(h := level.get("annotations"), Mapping)), {})
        if name is not None and isinstance(hints.get("readOnlyHint"), bool):
            is_read = hints.get("idempotentHint") is True
            found[name] = ("read" if is_read else "poll") if hints["readOnlyHint"] else "write"
    return {TOOL_KINDS: json.dumps(found, sort_keys=True)} if found else {}


def golden_answers(value: Any) -> tuple[str, ...]:
    """Accepted answers from a text, a number, a list of them, or an object that holds them under "target"."""
    if isinstance(value, Mapping) and "target" in value:
        value = value["target"]
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    listed = value if isinstance(value, list) else [value]
    return tuple(_text(item) for item in listed if item is not None)


def prompt_group(step: int | None, prompt: object) -> str:
    """Group of the trajectories of one prompt (text, messages or token ids) at one training step."""
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
    """Seconds since 1970, of a number in seconds down to nanoseconds or an ISO 8601 date (default UTC); else NaN."""
    moment = seconds(value)
    if isinstance(value, str):
        try:
            date = datetime.fromisoformat(value.strip())
            moment = (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            return math.nan
    return next((moment / per_second for least, per_second in _EPOCH_UNITS if abs(moment) >= least), moment)

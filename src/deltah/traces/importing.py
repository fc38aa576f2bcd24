"""Importers: functions that turn one record of a log into a trajectory, each registered where it is defined.

A format of one's own is one function:

    @IMPORTERS.register("mine", meaning="Log of my agent", fields=("steps", "answer"))
    def read(record: dict[str, Any], context: RecordContext) -> Trajectory:
        return Trajectory(id=record.get("id", context.default_id), segments=..., calls=...)

What `register` takes beside the name and its meaning:

* `fields`: top-level names that all stand in a record of the format, by which it is told from others; of several
  formats that fit, the one with the most names counts. In place of a name may stand a tuple of names, of which one
  must be there. Without fields the format is never detected, only read where a user names it.
* `schema`: type that msgspec decodes the record into, by default `dict[str, Any]`; `bytes` leaves it undecoded.

An importer may also return an API call, which the reader joins with the others of its conversation, or a chunk of a
streamed response. It raises `DataError` for a record that does not fit; the reader counts it, adds where it stands, and
goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec

from deltah.core.registry import Entry, Registry
from deltah.core.types import Trajectory
from deltah.errors import DataError, InvalidValueError
from deltah.traces.chunks import LoggedChunk
from deltah.traces.conversation import ApiCall
from deltah.traces.fields import decode_line
from deltah.traces.files import Position
from deltah.traces.sources import STDIN


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
        return default_id(self.where)


Importer: TypeAlias = Callable[[Any, RecordContext], Trajectory | ApiCall | LoggedChunk]

IMPORTERS: Final[Registry[Importer]] = Registry("trace format")
"""Formats that can be read; `deltah.traces.importers` fills it."""

_TOP_LEVEL: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANY_OBJECT: Final = msgspec.json.Decoder(dict[str, object])


def default_id(where: Position) -> str:
    """Id of a trajectory whose records have none: file name and number of the first."""
    return f"{'stdin' if where.file == STDIN else Path(where.file).name}:{where.number}"


def recognise(data: bytes) -> Entry[Importer] | None:
    """Format of one record, by its top-level names alone; None if it has the fields of no known one.

    Raises:
        DataError: if the record is not a JSON object.
    """
    names = _top_level(data)
    fitting = [entry for entry in IMPORTERS.values() if _fits(entry.options.get("fields", ()), names)]
    return max(fitting, key=lambda entry: sum(isinstance(f, str) for f in entry.options["fields"]), default=None)


def detect(data: bytes) -> Entry[Importer]:
    """Format of one record.

    Raises:
        DataError: if the record is not a JSON object, or has the fields of no known format.
    """
    found = recognise(data)
    if found is None:
        known = "; ".join(f"{name}: {_words(entry.options.get('fields', ()))}" for name, entry in IMPORTERS.items())
        raise DataError(f"no known trace format; expected the fields of one ({known}), or a format that you name")
    return found


def import_record(entry: Entry[Importer], data: bytes, context: RecordContext) -> Trajectory | ApiCall | LoggedChunk:
    """What one record holds.

    Raises:
        DataError: if the record is not of the format.
    """
    schema = entry.options.get("schema", dict[str, Any])
    record = data if schema is bytes else decode_line(data, _decoder(schema))
    try:
        return entry.value(record, context)
    except KeyError as error:
        raise DataError(f"field {error.args[0]}: missing") from error
    except InvalidValueError as error:  # the parts of its trajectory contradict each other
        raise error if isinstance(error, DataError) else DataError(str(error)) from error


def _fits(fields: tuple[str | tuple[str, ...], ...], names: frozenset[str]) -> bool:
    """Whether a record with these names is of the format with these fields."""
    return bool(fields) and all(
        field in names if isinstance(field, str) else not names.isdisjoint(field) for field in fields
    )


def _words(fields: tuple[str | tuple[str, ...], ...]) -> str:
    return ", ".join(repr(field) if isinstance(field, str) else " or ".join(map(repr, field)) for field in fields)


def _top_level(data: bytes) -> frozenset[str]:
    """Top-level names of a record; their values are skipped, not decoded."""
    try:
        return frozenset(_TOP_LEVEL.decode(data))
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        names: dict[str, object] = decode_line(data, _ANY_OBJECT)  # the lenient decoder cannot fill `Raw`
        return frozenset(names)


@lru_cache
def _decoder(schema: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(schema)

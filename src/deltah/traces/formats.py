"""Formats of a trace record, told apart by content.

A record is judged by the names of its top-level fields alone, never by the file's name: a file may mix formats. Each
format has one `Importer`; most turn one record into one trajectory, chat logs join several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from deltah.core.types import Trajectory
from deltah.errors import DataError, InvalidValueError
from deltah.traces import openai, record
from deltah.traces.decode import decode_line
from deltah.traces.dialogue import Dialogue
from deltah.traces.streams import Position


class Format(StrEnum):
    """Formats that can be read."""

    DELTAH = "deltah"
    """Our own record (`deltah.traces.record`)."""
    OPENAI = "openai"
    """OpenAI-style chat log with logprobs (`deltah.traces.openai`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What records do not say of themselves.

    Raises:
        InvalidValueError: if the vocabulary size is not positive.
    """

    vocab_size: int | None = None
    """V for records that do not state it; None: unknown, so upper bounds from top-k log-probabilities are infinite."""
    join: bool = True
    """Whether API calls of one conversation become one trajectory."""

    def __post_init__(self) -> None:
        if self.vocab_size is not None and self.vocab_size < 1:
            raise InvalidValueError(f"vocab_size is {self.vocab_size}; expected a positive number of tokens")


class Pending(NamedTuple):
    """A trajectory about to be built, and where its records begin."""

    where: Position
    build: Callable[[], Trajectory]
    """Raises `DataError` if the record cannot be a trajectory."""


class Importer(Protocol):
    """Turns the records of one format into trajectories, in order."""

    @property
    def n_unjoined(self) -> int:
        """API calls whose history the log does not hold."""

    @property
    def n_branches(self) -> int:
        """Retries and forks that were not continued."""

    def add(self, data: bytes, where: Position) -> Iterable[Pending]:
        """Take one record; raises `DataError`, with nothing taken, if it is not of this format."""

    def finish(self, where: Position) -> Iterable[Pending]:
        """Give what still waited for further records."""


class _Fields(msgspec.Struct):
    """Top-level names that tell the formats apart; their values are skipped, not decoded."""

    schema_version: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    segments: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    messages: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    response: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    request: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    choices: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_DECODER = msgspec.json.Decoder(_Fields)
_ANY_OBJECT = msgspec.json.Decoder(dict[str, object])


def parse_format(name: str) -> Format:
    """Format of a name given by a user.

    Raises:
        InvalidValueError: if there is no such format.
    """
    try:
        return Format(name)
    except ValueError as error:
        raise InvalidValueError(f"trace format is {name!r}; expected one of: {', '.join(Format)}") from error


def detect(data: bytes) -> Format:
    """Format of one record.

    Raises:
        DataError: if the record is not a JSON object, or has the fields of no known format.
    """
    fields = _top_level(data)
    if fields.schema_version is not msgspec.UNSET:
        return Format.DELTAH
    if any(f is not msgspec.UNSET for f in (fields.messages, fields.response, fields.request, fields.choices)):
        return Format.OPENAI
    raise DataError(
        "no known trace format: expected 'schema_version' and 'segments' (deltah), 'messages' or 'request' and "
        "'response' (openai)"
    )


def make_importer(fmt: Format, options: ImportOptions) -> Importer:
    """Importer of a format."""
    return _IMPORTERS[fmt](options)


def default_id(where: Position) -> str:
    """Id of a trajectory whose record has none: file name and number."""
    return f"{'stdin' if where.file == '-' else Path(where.file).name}:{where.number}"


def _top_level(data: bytes) -> _Fields:
    try:
        return _DECODER.decode(data.removeprefix(b"data:"))
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # The lenient decoder cannot fill `Raw`; presence of a name is all that is needed.
        names = decode_line(data, _ANY_OBJECT)
        present = {name: msgspec.Raw(b"null") for name in _Fields.__struct_fields__ if name in names}
        return _Fields(**present)


class _Single:
    """Importer of a format whose records are trajectories."""

    n_unjoined = n_branches = 0

    def __init__(self, decode: Callable[[bytes, str, ImportOptions], Trajectory], options: ImportOptions) -> None:
        self._decode, self._options = decode, options

    def add(self, data: bytes, where: Position) -> Iterable[Pending]:
        trajectory = self._decode(data, default_id(where), self._options)
        return (Pending(where, lambda: trajectory),)

    def finish(self, where: Position) -> Iterable[Pending]:
        del where
        return ()


class _ChatLogs:
    """Importer of chat logs."""

    def __init__(self, options: ImportOptions) -> None:
        self._importer, self._options = openai.ChatLogImporter(join=options.join), options

    @property
    def n_unjoined(self) -> int:
        return self._importer.joiner.n_unjoined if self._importer.joiner is not None else 0

    @property
    def n_branches(self) -> int:
        return self._importer.joiner.n_branches if self._importer.joiner is not None else 0

    def add(self, data: bytes, where: Position) -> Iterable[Pending]:
        return [self._pending(dialogue) for dialogue in self._importer.add(data, where)]

    def finish(self, where: Position) -> Iterator[Pending]:
        return map(self._pending, self._importer.finish(where))

    def _pending(self, dialogue: Dialogue) -> Pending:
        def build() -> Trajectory:
            name = default_id(dialogue.where)
            return openai.to_trajectory(dialogue, default_id=name, vocab_size=self._options.vocab_size)

        return Pending(dialogue.where, build)


def _own(data: bytes, name: str, options: ImportOptions) -> Trajectory:
    del name, options  # a record says everything of itself
    return record.decode(data)


_IMPORTERS: dict[Format, Callable[[ImportOptions], Importer]] = {
    Format.DELTAH: lambda options: _Single(_own, options),
    Format.OPENAI: _ChatLogs,
}

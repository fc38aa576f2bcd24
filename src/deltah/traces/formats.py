"""How the records of each format are read: most turn one record into one trajectory, chat logs join several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from deltah.core.types import Trajectory
from deltah.errors import ConfigError, DataError, DeltahError, InvalidValueError
from deltah.traces import importers, inspect_ai, openai, record  # noqa: F401  # registers the formats
from deltah.traces.dialogue import Dialogue, Exchange
from deltah.traces.importing import IMPORTERS, RecordContext, detect, import_record
from deltah.traces.streams import Position


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What records do not say of themselves.

    Raises:
        InvalidValueError: if the vocabulary size is not positive.
    """

    vocab_size: int | None = None
    """V for records that do not state it; None: that of the model's family, else `DEFAULT_VOCAB_SIZE`."""
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
        """Take one record.

        Raises:
            DataError: with nothing taken, if it is not of this format.
            NeedsOthers: with nothing taken, if others complete it and the importer is to read each by itself.
        """

    def finish(self, where: Position) -> Iterable[Pending]:
        """Give what still waited for further records."""


def decodes_alone(data: bytes, fmt: str | None = None) -> bool:
    """Whether a record can be decoded without others: not a piece of a stream; False for what cannot be read.

    Args:
        data: The record.
        fmt: Its format; None: told from its content.
    """
    try:
        found = detect(data).name if fmt is None else fmt
    except DataError:
        return False
    return found != "openai" or not openai.is_chunk(data)


def make_importer(fmt: str, options: ImportOptions, *, alone: bool = False) -> Importer:
    """Importer of a format.

    Args:
        fmt: The format.
        options: What its records do not say.
        alone: Whether it is to refuse records that others complete, with `NeedsOthers`.
    """
    if fmt == "openai":
        return ChatLogs(options, alone=alone)
    if fmt == "inspect":
        return _Single(partial(_inspect, options))
    if fmt == "deltah":
        return _Single(lambda data, where: record.decode(data))
    entry = IMPORTERS.resolve(fmt)
    return _Single(
        lambda data, where: import_record(entry, data, RecordContext(where=where, vocab_size=options.vocab_size))
    )


def default_id(where: Position) -> str:
    """Id of a trajectory whose record has none: file name and number."""
    return RecordContext(where=where).default_id


def _not_called(data: bytes, context: RecordContext) -> Trajectory:
    raise NotImplementedError


IMPORTERS.register("deltah", meaning="Traces that deltah wrote", fields=("schema_version",))(_not_called)
IMPORTERS.register("inspect", meaning="Samples of Inspect", fields=("epoch", "target", "messages"))(_not_called)
IMPORTERS.register(
    "openai",
    meaning="OpenAI-style chat log with logprobs",
    fields=(("messages", "response", "request", "choices"),),
)(_not_called)


def _fail(error: DeltahError) -> Trajectory:
    raise error


class _Single:
    """Importer of a format whose records are trajectories."""

    n_unjoined = n_branches = 0

    def __init__(self, decode: Callable[[bytes, Position], Trajectory]) -> None:
        self._decode = decode

    def add(self, data: bytes, where: Position) -> Iterable[Pending]:
        try:
            trajectory = self._decode(data, where)
        except ConfigError as error:
            return (Pending(where, partial(_fail, error)),)  # no fault of this record: it stops the reading
        return (Pending(where, lambda: trajectory),)

    def finish(self, where: Position) -> Iterable[Pending]:
        del where
        return ()


class ChatLogs:
    """Importer of chat logs."""

    def __init__(self, options: ImportOptions, *, alone: bool = False) -> None:
        """Start a log; see `make_importer`."""
        self._importer, self._options = openai.ChatLogImporter(join=options.join, alone=alone), options

    @property
    def n_unjoined(self) -> int:
        """See `Importer`."""
        return self._importer.joiner.n_unjoined if self._importer.joiner is not None else 0

    @property
    def n_branches(self) -> int:
        """See `Importer`."""
        return self._importer.joiner.n_branches if self._importer.joiner is not None else 0

    def add(self, data: bytes, where: Position) -> Iterable[Pending]:
        """See `Importer`."""
        return [self._pending(dialogue) for dialogue in self._importer.add(data, where)]

    def join(self, exchange: Exchange) -> Iterable[Pending]:
        """Take one API call that was decoded before."""
        return [self._pending(dialogue) for dialogue in self._importer.join(exchange)]

    def finish(self, where: Position) -> Iterator[Pending]:
        """See `Importer`."""
        for read in self._importer.finish():
            yield Pending(where, partial(_fail, read)) if isinstance(read, DataError) else self._pending(read)

    def _pending(self, dialogue: Dialogue) -> Pending:
        given = self._options.vocab_size
        build = partial(openai.to_trajectory, dialogue, default_id=default_id(dialogue.where), vocab_size=given)
        return Pending(dialogue.where, build)


def _inspect(options: ImportOptions, data: bytes, where: Position) -> Trajectory:
    return inspect_ai.decode(data, default_id=default_id(where), vocab_size=options.vocab_size)

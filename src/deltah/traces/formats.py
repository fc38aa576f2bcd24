"""Formats of a trace record, told apart by content.

A record is judged by the names of its top-level fields alone, never by the file's name: a file may mix formats. Each
format has one `Importer`; most turn one record into one trajectory, chat logs join several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import msgspec

from deltah.core.types import Trajectory
from deltah.errors import ConfigError, DataError, DeltahError, InvalidValueError
from deltah.traces import inspect_ai, openai, prime_rl, record, trl, verl
from deltah.traces.decode import decode_line
from deltah.traces.dialogue import Dialogue, Exchange
from deltah.traces.evidence import bounded, with_evidence
from deltah.traces.namedsizes import NamedSizes
from deltah.traces.seen import SeenTokens
from deltah.traces.streams import Position


class Format(StrEnum):
    """Formats that can be read."""

    DELTAH = "deltah"
    """Our own record (`deltah.traces.record`)."""
    OPENAI = "openai"
    """OpenAI-style chat log with logprobs (`deltah.traces.openai`)."""
    INSPECT = "inspect"
    """Sample of an Inspect log (`deltah.traces.inspect_ai`)."""
    PRIME_RL = "prime-rl"
    """Token export of prime-rl (`deltah.traces.prime_rl`)."""
    VERL = "verl"
    """Rollout dump of verl (`deltah.traces.verl`)."""
    TRL = "trl"
    """Completion log of TRL (`deltah.traces.trl`)."""


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
    evidence: bool = True
    """Whether trajectories of unknown vocabulary size carry what takes the place of their lists once it is stated."""

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


_SIGNATURES: Final = (
    # The first whose names all stand in the record counts: prime-rl writes a `schema_version` too.
    (Format.PRIME_RL, ("loss_mask", "token_ids", "entropy")),
    (Format.DELTAH, ("schema_version",)),
    (Format.INSPECT, ("epoch", "target", "messages")),
    (Format.VERL, ("input", "output", "score", "step")),
    (Format.TRL, ("prompt", "completion")),
    (Format.OPENAI, ("messages",)),
    (Format.OPENAI, ("response",)),
    (Format.OPENAI, ("request",)),
    (Format.OPENAI, ("choices",)),
)
"""Top-level names that tell the formats apart."""
_NAMES: Final = tuple(dict.fromkeys(name for _, names in _SIGNATURES for name in names))
_Fields = msgspec.defstruct(
    "_Fields", [(name, msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for name in _NAMES], module=__name__
)
"""Their values are skipped, not decoded."""


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
    return _format_of(_top_level(data))


def _format_of(present: frozenset[str]) -> Format:
    for fmt, names in _SIGNATURES:
        if present.issuperset(names):
            return fmt
    raise DataError(
        "no known trace format: expected 'schema_version' and 'segments' (deltah), 'messages' or 'request' and "
        "'response' (openai), or a record of Inspect, prime-rl, verl or TRL"
    )


def decodes_alone(data: bytes, fmt: Format | None = None) -> bool:
    """Whether a record can be decoded without others: not a piece of a stream; False for what cannot be read.

    Args:
        data: The record.
        fmt: Its format; None: told from its content.
    """
    try:
        names = _top_level(data)
        found = _format_of(names) if fmt is None else fmt
    except DataError:
        return False
    return found is not Format.OPENAI or ("choices" not in names and not openai.is_chunk(data))


def make_importer(
    fmt: Format, options: ImportOptions, *, alone: bool = False, sizes: NamedSizes | None = None
) -> Importer:
    """Importer of a format.

    Args:
        fmt: The format.
        options: What its records do not say.
        alone: Whether it is to refuse records that others complete, with `NeedsOthers`.
        sizes: What the log says of the sizes known from models' names; kept up to date.
    """
    sizes = NamedSizes() if sizes is None else sizes
    if fmt is Format.OPENAI:
        return ChatLogs(options, sizes, alone=alone)
    return _Single(partial(_inspect, sizes) if fmt is Format.INSPECT else _DECODERS[fmt], options)


def default_id(where: Position) -> str:
    """Id of a trajectory whose record has none: file name and number."""
    return f"{'stdin' if where.file == '-' else Path(where.file).name}:{where.number}"


def _top_level(data: bytes) -> frozenset[str]:
    """Which of the telling names a record has."""
    try:
        fields = _DECODER.decode(data.removeprefix(b"data:"))
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # The lenient decoder cannot fill `Raw`; presence of a name is all that is needed.
        names: dict[str, object] = decode_line(data, _ANY_OBJECT)
        return frozenset(names)
    return frozenset(name for name in _NAMES if getattr(fields, name) is not msgspec.UNSET)


def _fail(error: DeltahError) -> Trajectory:
    raise error


class _Single:
    """Importer of a format whose records are trajectories."""

    n_unjoined = n_branches = 0

    def __init__(self, decode: Callable[[bytes, str, ImportOptions], Trajectory], options: ImportOptions) -> None:
        self._decode, self._options = decode, options

    def add(self, data: bytes, where: Position) -> Iterable[Pending]:
        try:
            trajectory = self._decode(data, default_id(where), self._options)
        except ConfigError as error:
            return (Pending(where, partial(_fail, error)),)  # no fault of this record: it stops the reading
        return (Pending(where, lambda: trajectory),)

    def finish(self, where: Position) -> Iterable[Pending]:
        del where
        return ()


class ChatLogs:
    """Importer of chat logs."""

    def __init__(self, options: ImportOptions, sizes: NamedSizes, *, alone: bool = False) -> None:
        """Start a log; see `make_importer`."""
        self._importer, self._options = openai.ChatLogImporter(join=options.join, alone=alone), options
        self._sizes = sizes

    @property
    def n_unjoined(self) -> int:
        """See `Importer`."""
        return self._importer.joiner.n_unjoined if self._importer.joiner is not None else 0

    @property
    def n_branches(self) -> int:
        """See `Importer`."""
        return self._importer.joiner.n_branches if self._importer.joiner is not None else 0

    @property
    def seen(self) -> SeenTokens:
        """Different tokens of the log so far."""
        return self._importer.seen

    def add(self, data: bytes, where: Position) -> Iterable[Pending]:
        """See `Importer`."""
        return [self._pending(dialogue) for dialogue in self._importer.add(data, where)]

    def join(self, exchange: Exchange) -> Iterable[Pending]:
        """Take one API call that was decoded before."""
        return [self._pending(dialogue) for dialogue in self._importer.join(exchange)]

    def merge_seen(self, seen: SeenTokens) -> None:
        """Count the tokens of a part of the log.

        Raises:
            ConfigError: if the log has shown more different tokens than the caller's vocabulary size.
        """
        self.seen.merge(seen)
        if self._options.vocab_size is not None:
            openai.check_size(self.seen, self._options.vocab_size)
        else:
            self._sizes.check(self.seen)

    def finish(self, where: Position) -> Iterator[Pending]:
        """See `Importer`."""
        for read in self._importer.finish():
            yield Pending(where, partial(_fail, read)) if isinstance(read, DataError) else self._pending(read)

    def _pending(self, dialogue: Dialogue) -> Pending:
        given = self._options.vocab_size
        to_trajectory = partial(
            openai.to_trajectory, default_id=default_id(dialogue.where), vocab_size=given, seen=self._importer.seen
        )
        whole = to_trajectory if given is not None else partial(self._sizes.build, to_trajectory=to_trajectory)
        if self._options.evidence:
            whole = partial(with_evidence, to_trajectory=whole)
        return Pending(dialogue.where, partial(whole, dialogue))


_Decode = Callable[[bytes, str, ImportOptions], Trajectory]


def _foreign(decode: Callable[..., Trajectory]) -> _Decode:
    def read(data: bytes, name: str, options: ImportOptions) -> Trajectory:
        return decode(data, default_id=name, vocab_size=options.vocab_size)

    return read


def _inspect(sizes: NamedSizes, data: bytes, name: str, options: ImportOptions) -> Trajectory:
    return inspect_ai.decode(
        data, default_id=name, vocab_size=options.vocab_size, sizes=sizes, evidence=options.evidence
    )


def _own(data: bytes, name: str, options: ImportOptions) -> Trajectory:
    del name  # a record says everything of itself, but for the size of a vocabulary
    return bounded(record.decode(data), options.vocab_size)


_DECODERS: Final[dict[Format, _Decode]] = {
    Format.DELTAH: _own,
    Format.PRIME_RL: _foreign(prime_rl.decode),
    Format.VERL: _foreign(verl.decode),
    Format.TRL: _foreign(trl.decode),
}

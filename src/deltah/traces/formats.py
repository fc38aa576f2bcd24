"""Formats of a trace line, told apart by content.

A line is judged by the names of its top-level fields alone, never by the file's name: a file may mix formats.
Each importer is a function from one line to one `Trajectory`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import msgspec

from deltah.core.types import Trajectory
from deltah.errors import DataError, InvalidValueError
from deltah.traces import openai, record
from deltah.traces.decode import decode_line


class Format(StrEnum):
    """Line formats that can be read."""

    DELTAH = "deltah"
    """Our own record (`deltah.traces.record`)."""
    OPENAI = "openai"
    """OpenAI-style chat log with logprobs (`deltah.traces.openai`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineContext:
    """What a line does not say of itself."""

    default_id: str
    """Id of a trajectory whose line has none."""
    vocab_size: int | None = None
    """V for lines that do not state it; None: unknown, so upper bounds from top-k log-probabilities are infinite."""


Importer: TypeAlias = Callable[[bytes, LineContext], Trajectory]


class _Fields(msgspec.Struct):
    """Top-level names that tell the formats apart; their values are skipped, not decoded."""

    schema_version: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    segments: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    messages: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    response: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    request: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_DECODER = msgspec.json.Decoder(_Fields)


def parse_format(name: str) -> Format:
    """Format of a name given by a user.

    Raises:
        InvalidValueError: if there is no such format.
    """
    try:
        return Format(name)
    except ValueError as error:
        raise InvalidValueError(f"trace format is {name!r}; expected one of: {', '.join(Format)}") from error


def detect(line: bytes) -> Format:
    """Format of one line.

    Raises:
        DataError: if the line is not a JSON object, or has the fields of no known format.
    """
    fields = _top_level(line)
    if fields.schema_version is not msgspec.UNSET:
        return Format.DELTAH
    if fields.messages is not msgspec.UNSET or fields.response is not msgspec.UNSET:
        return Format.OPENAI
    if fields.request is not msgspec.UNSET:
        raise DataError("field response: missing beside 'request'; log each request together with its response")
    raise DataError(
        "no known trace format: expected 'schema_version' and 'segments' (deltah), 'messages' or 'request' and "
        "'response' (openai)"
    )


def read_line(line: bytes, fmt: Format, context: LineContext) -> Trajectory:
    """Read one line in a stated format.

    Raises:
        DataError: if the line does not fit the format.
    """
    return _IMPORTERS[fmt](line, context)


def _top_level(line: bytes) -> _Fields:
    try:
        return _DECODER.decode(line)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # The lenient decoder cannot fill `Raw`; presence of a name is all that is needed.
        names = decode_line(line, _ANY_OBJECT)
        present = {name: msgspec.Raw(b"null") for name in _Fields.__struct_fields__ if name in names}
        return _Fields(**present)


_ANY_OBJECT = msgspec.json.Decoder(dict[str, object])


def _own(line: bytes, context: LineContext) -> Trajectory:
    del context  # a record says everything of itself
    return record.decode(line)


def _openai(line: bytes, context: LineContext) -> Trajectory:
    return openai.decode(line, default_id=context.default_id, vocab_size=context.vocab_size)


_IMPORTERS: dict[Format, Importer] = {Format.DELTAH: _own, Format.OPENAI: _openai}

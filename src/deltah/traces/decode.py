"""Strict JSON to typed records, with one lenient second try for what real writers produce.

Python's `json` writes NaN and Infinity, and JavaScript writes lone surrogates; strict JSON has neither. A line that the
fast strict decoder refuses is read once more by the standard library, with bytes that are not UTF-8 and lone surrogates
replaced by U+FFFD. A line whose JSON is sound but whose fields are wrong is not retried.
"""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

import msgspec

from deltah.errors import DataError

T = TypeVar("T")

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

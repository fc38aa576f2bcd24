"""One frozen configuration from a TOML or JSON file and options. An option beats the file, the file beats the default.

Keys mean the same in every command: `rollout.max_rounds` is field `max_rounds` of table `rollout`. A key may be written
without its table where one table alone has it.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

from deltah.errors import ConfigError

Config = TypeVar("Config")


def resolve(
    kind: type[Config],
    path: Path | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
) -> Config:
    """Configuration from a file, options by dotted key (None: not given) and `key=value` texts, the last one first."""
    content: dict[str, Any] = {}
    for key, value in (_read_file(path) if path is not None else {}).items():
        _put(content, _full_key(kind, key), value)
    for key, value in (options or {}).items():
        if value is not None:
            _put(content, key, value)
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set {setting!r}: expected key=value, such as --set reward.alpha=0.3")
        _put(content, _full_key(kind, key.strip()), _value(value.strip()))
    try:
        return msgspec.convert(_checked(kind, content), kind, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(_readable(str(error), options or {})) from error


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a table of keys")
    return content


def _put(content: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a key; a table adds its keys to those that are there."""
    *tables, last = dotted.split(".")
    for table in tables:
        content = content.setdefault(table, {})
        if not isinstance(content, dict):
            raise ConfigError(f"{dotted}: {table} is a value, not a table")
    if isinstance(value, Mapping) and isinstance(content.setdefault(last, {}), dict):
        for key, inner in value.items():
            _put(content[last], key, inner)
    else:
        content[last] = value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def _full_key(kind: Any, dotted: str) -> str:
    """A dotted key with its table."""
    first, known = dotted.partition(".")[0], [field.name for field in fields(kind)]
    if first in known:
        return dotted
    tables = {name: table for name, hint in get_type_hints(kind).items() if (table := _table_of(hint)) is not None}
    owners = [name for name, table in tables.items() if first in [field.name for field in fields(table)]]
    if len(owners) > 1:
        raise ConfigError(
            f"several tables have a configuration key {first!r}; write one of: "
            f"{', '.join(f'{owner}.{first}' for owner in owners)}"
        )
    return f"{owners[0]}.{dotted}" if owners else dotted


def _checked(kind: Any, content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Content whose every key exists; of a table with a field `options`, keys that are no fields move there."""
    hints, checked, options = get_type_hints(kind), dict[str, Any](), dict[str, Any]()
    known = sorted(field.name for field in fields(kind))
    for key, value in content.items():
        if key not in known and "options" not in known:
            raise ConfigError(f"unknown configuration key {prefix + key!r}; choose from: {', '.join(known)}")
        inner = _table_of(hints.get(key))
        if key not in known:
            options[key] = value
        elif inner is not None and isinstance(value, Mapping):
            checked[key] = _checked(inner, value, f"{prefix}{key}.")
        else:
            checked[key] = value
    return checked | ({"options": {**checked.get("options", {}), **options}} if options else {})


def _table_of(hint: Any) -> Any:
    """The dataclass that a field holds, or None."""
    return next((t for t in (hint, *get_args(hint)) if is_dataclass(t)), None)


def _readable(message: str, options: Iterable[str]) -> str:
    """Turn msgspec's message into one that names the key first, and the option of a key that is missing."""
    missing = re.match(r"Object missing required field `(\w+)`(?: - at `\$\.?(.*)`)?", message)
    if missing:
        key = ".".join(part for part in (missing[2], missing[1]) if part)
        last = [option.rpartition(".")[2] for option in options]
        option = missing[1] if last.count(missing[1]) == 1 else key.replace(".", "-")
        return f"{key} is missing; give it with --{option}, or in the configuration file (--config)"
    text, _, where = message.partition(" - at `$.")
    return f"{where.rstrip('`')}: {text[0].lower()}{text[1:]}" if where else text

"""TOML (or JSON) file + options -> one frozen configuration. An option beats the file, the file beats the default.

Keys mean the same in every command: `rollout.max_rounds` is field `max_rounds` of table `rollout`. A key may be written
without its table where one table alone has it.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
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
    defaults: Mapping[str, Any] | None = None,
) -> Config:
    """Build a configuration."""
    content: dict[str, Any] = {}
    for key, value in (defaults or {}).items():
        _assign(content, key, value)
    for key, value in (_read_file(path) if path is not None else {}).items():
        table = _full_key(kind, key).removesuffix(key).rstrip(".")
        _merge(content, {table: {key: value}} if table else {key: value})
    for key, value in (options or {}).items():
        if value is not None:
            _assign(content, key, value)
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set {setting!r}: expected key=value, such as --set reward.alpha=0.3")
        _assign(content, _full_key(kind, key.strip()), _value(value.strip()))
    content = _with_options(kind, content)
    _check_keys(kind, content, "")
    try:
        return msgspec.convert(content, kind, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(_readable(str(error))) from error


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


def _merge(target: dict[str, Any], source: Mapping[str, Any]) -> None:
    for key, value in source.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = dict(value) if isinstance(value, Mapping) else value


def _assign(content: dict[str, Any], dotted: str, value: Any) -> None:
    *tables, last = dotted.split(".")
    for table in tables:
        content = content.setdefault(table, {})
        if not isinstance(content, dict):
            raise ConfigError(f"{dotted}: {table} is a value, not a table")
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


def _with_options(kind: Any, content: Mapping[str, Any]) -> dict[str, Any]:
    """Move the keys of a table that are options, and no fields, into its field `options`, where it has one."""
    known, hints = {field.name for field in fields(kind)}, get_type_hints(kind)
    own = {key: value for key, value in content.items() if key in known or "options" not in known}
    for key, value in own.items():
        inner = _table_of(hints.get(key))
        if inner is not None and isinstance(value, Mapping):
            own[key] = _with_options(inner, value)
    if len(own) < len(content):
        own["options"] = {**own.get("options", {}), **{key: content[key] for key in content if key not in own}}
    return own


def _table_of(hint: Any) -> Any:
    """The dataclass that a field holds, or None."""
    return next((t for t in (hint, *get_args(hint)) if is_dataclass(t)), None)


def _check_keys(kind: Any, content: Mapping[str, Any], prefix: str) -> None:
    """Name the first key that does not exist, with those that do."""
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]
    for key, value in content.items():
        if key not in known:
            raise ConfigError(f"unknown configuration key {prefix + key!r}; choose from: {', '.join(sorted(known))}")
        inner = _table_of(hints[key])
        if inner is not None and isinstance(value, Mapping):
            _check_keys(inner, value, f"{prefix}{key}.")


def _readable(message: str) -> str:
    """Turn msgspec's message into one that names the key first."""
    missing = re.match(r"Object missing required field `(\w+)`(?: - at `\$\.?(.*)`)?", message)
    if missing:
        key = ".".join(part for part in (missing[2], missing[1]) if part)
        return f"{key} is missing; give it as an option or in the configuration file"
    text, _, where = message.partition(" - at `$.")
    return f"{where.rstrip('`')}: {text[0].lower()}{text[1:]}" if where else text

"""What stands around a value in a log: JSON kept as text inside JSON, attributes with dotted names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from deltah.traces.importing import finite

_ANY: Final = msgspec.json.Decoder(Any)


def json_value(value: Any) -> Any:
    """The object or list that a text holds as JSON; any other value as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    try:
        found = _ANY.decode(value)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return value
    return found


def number(value: Any) -> float | None:
    """A finite number, also as a text, as databases export it; None for anything else."""
    try:
        return finite(float(value)) if isinstance(value, str) else finite(value)
    except ValueError:
        return None


def unflattened(fields: Mapping[str, Any], prefix: str) -> Any:
    """Value of `prefix` where its parts are fields of their own, as in `prefix.0.role`; None where there are none."""
    if prefix in fields:
        return json_value(fields[prefix])
    start = f"{prefix}."
    inside = {name.removeprefix(start): value for name, value in fields.items() if name.startswith(start)}
    return tree_of(inside) if inside else None


def tree_of(fields: Mapping[str, Any]) -> Any:
    """Nested objects for dotted names; where all names of one are numbers, a list."""
    tree: dict[str, Any] = {}
    for name, value in fields.items():
        *path, last = name.split(".")
        place = tree
        for step in path:
            inner = place.setdefault(step, {})
            place = inner if isinstance(inner, dict) else {}  # a name that is also a value: the value stays
        place[last] = value
    return _listed(tree)


def _listed(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    if tree and all(key.isdecimal() for key in tree):
        return [_listed(tree[key]) for key in sorted(tree, key=int)]
    return {key: _listed(value) for key, value in tree.items()}

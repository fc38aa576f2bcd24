"""Answers on disk: one JSON line a query, so that a killed probe repeats nothing it has read an answer to.

The first line is the identity of the model. Each other line holds a digest of identity and query, and the answer. A
file of another identity is refused and the differing keys are named. A line cut off by a killed writer is dropped when
the file is opened again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import msgspec
import numpy as np

from deltah.core.types import Estimator, FloatArray, Scalar
from deltah.errors import ConfigError, DataError
from deltah.probe.types import Query, Scores, plain

VERSION = 1
_FIRST_BYTES = b'{"probe_cache"'


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    probe_cache: int
    identity: dict[str, str | int | float | bool | None]


Element: TypeAlias = float | Literal["inf", "-inf"] | None
"""As in `deltah.traces.record`: null is NaN."""


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    logprobs: list[Element]
    entropy: list[Element]
    lower: list[Element] | None
    """null: the entropies are exact."""
    upper: list[Element] | None
    focus: list[bool]
    estimator: Estimator
    n_context: int


_HEADERS, _ENTRIES = msgspec.json.Decoder(_Header), msgspec.json.Decoder(_Entry)


class ProbeCache:
    """Answers of one model, by query; open it with `open_cache`."""

    def __init__(self, path: Path, identity: Mapping[str, Scalar], entries: dict[str, Scores], *, end: int) -> None:
        """Continue a file after its last whole line, at byte `end`; 0: start it."""
        self.path = path
        self.n_read = len(entries)
        """Answers that were on disk."""
        self._identity = dict(identity)
        self._entries = entries
        self._end = end
        self._file: Any = None

    def __contains__(self, query: Query) -> bool:
        """Whether the answer is known."""
        return self._key(query) in self._entries

    def __getitem__(self, query: Query) -> Scores:
        """The answer to a query that is `in` the cache."""
        return self._entries[self._key(query)]

    def put(self, query: Query, scores: Scores) -> None:
        """Keep an answer: on disk, flushed, before it is used.

        Raises:
            DataError: if it cannot be written.
        """
        key = self._key(query)
        self._entries[key] = scores
        try:
            if self._file is None:
                self._file = self._open()
            self._file.write(msgspec.json.encode(_to_entry(key, scores)) + b"\n")
            self._file.flush()
        except OSError as error:
            raise DataError(
                f"cannot write the cache {self.path}: {error.strerror or error}; what it holds is kept"
            ) from error

    def __enter__(self) -> Self:
        """Return the cache itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _open(self) -> Any:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("r+b" if self._end else "wb")
        file.truncate(self._end)
        file.seek(0, os.SEEK_END)
        if not self._end:
            file.write(msgspec.json.encode(_Header(probe_cache=VERSION, identity=self._identity)) + b"\n")
        return file

    def _key(self, query: Query) -> str:
        return digest({"identity": self._identity, **plain(query)})


def open_cache(path: Path, identity: Mapping[str, Scalar]) -> ProbeCache:
    """Open the answers of a model, or prepare to start a file for them; nothing is written before the first answer.

    Raises:
        ConfigError: if the file is not such a cache, or one of another model.
        DataError: if it cannot be read.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise DataError(f"cannot read the cache {path}: {error.strerror or error}") from error
    end = content.rfind(b"\n") + 1
    lines = content[:end].splitlines()
    if not lines:
        if content and not content.startswith(_FIRST_BYTES):
            raise _foreign(path)
        return ProbeCache(path, identity, {}, end=0)
    _check_header(path, lines[0], identity)
    entries = {}
    for line in lines[1:]:
        try:
            entry = _ENTRIES.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue  # its query is asked again
        entries[entry.key] = _to_scores(entry)
    return ProbeCache(path, identity, entries, end=end)


def identity_on_disk(path: Path) -> dict[str, Scalar]:
    """Identity of the model whose answers a file holds; empty where there is no such file, or nothing in it."""
    try:
        with path.open("rb") as file:
            return dict(_HEADERS.decode(file.readline()).identity)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return {}  # `open_cache` says what is wrong with it


def digest(value: Any) -> str:
    """SHA-256 of a JSON-like value, as hex digits; equal for equal values in any order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _check_header(path: Path, line: bytes, identity: Mapping[str, Scalar]) -> None:
    try:
        header = _HEADERS.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _foreign(path) from error
    old, new = header.identity, dict(identity)
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if keys or header.probe_cache != VERSION:
        changes = "; ".join(f"{key}: {old.get(key)!r} then, {new.get(key)!r} now" for key in keys) or "its version"
        raise ConfigError(
            f"the cache {path} holds answers of another model or setting ({changes}); give the same options to "
            "continue, or another --out"
        )


def _foreign(path: Path) -> ConfigError:
    return ConfigError(f"{path} is not a cache of deltah probe; give another --out, or remove the file")


def _to_entry(key: str, scores: Scores) -> _Entry:
    exact = scores.estimator is not Estimator.TOP_K
    return _Entry(
        key=key,
        logprobs=_listed(scores.logprobs),
        entropy=_listed(scores.entropy),
        lower=None if exact else _listed(scores.lower),
        upper=None if exact else _listed(scores.upper),
        focus=scores.focus.tolist(),
        estimator=scores.estimator,
        n_context=scores.n_context,
    )


def _to_scores(entry: _Entry) -> Scores:
    entropy = _array(entry.entropy)
    return Scores(
        logprobs=_array(entry.logprobs),
        entropy=entropy,
        lower=entropy if entry.lower is None else _array(entry.lower),
        upper=entropy if entry.upper is None else _array(entry.upper),
        focus=np.array(entry.focus, dtype=np.bool_),
        estimator=entry.estimator,
        n_context=entry.n_context,
    )


def _listed(values: FloatArray) -> list[Element]:
    return [_element(value) for value in values.tolist()]


def _element(value: float) -> Element:
    if math.isfinite(value):
        return value
    return None if math.isnan(value) else "inf" if value > 0 else "-inf"


def _array(values: list[Element]) -> FloatArray:
    # numpy reads None as NaN and "inf" as infinity when the type is stated.
    return np.array(values, dtype=np.float64)

"""Answers on disk in SQLite, so that a killed probe repeats no query that was answered.

One file holds the answers of one model: its identity, and a row for each query (digest, answer). A file of another
identity is refused and the differing keys are named.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from deltah.core.types import Estimator, Scalar
from deltah.errors import ConfigError, DataError
from deltah.probe.queries import Query, Scores, digest

_ARRAYS = ("logprobs", "entropy", "lower", "upper")
_IDENTITY_TABLE = "CREATE TABLE identity (content TEXT NOT NULL)"
_ANSWERS_TABLE = f"""CREATE TABLE answers (
    query TEXT PRIMARY KEY,
    {", ".join(f"{name} BLOB" for name in _ARRAYS)}, focus BLOB,
    estimator TEXT, n_context INTEGER
) WITHOUT ROWID"""
"""Arrays as the bytes of float64, and of bool."""


class ProbeCache:
    """Answers of one model, by query; open it with `open_cache`."""

    def __init__(self, path: Path, identity: Mapping[str, Scalar], connection: sqlite3.Connection | None) -> None:
        """Use an open file, or start one at the first answer."""
        self.path = path
        self._identity = dict(identity)
        self._connection = connection

    def __len__(self) -> int:
        """Number of answers."""
        if self._connection is None:
            return 0
        return int(self._connection.execute("SELECT count(*) FROM answers").fetchone()[0])

    def __contains__(self, query: Query) -> bool:
        """Whether the answer is known."""
        return self._row("1", query) is not None

    def __getitem__(self, query: Query) -> Scores:
        """The answer to a query that is `in` the cache."""
        row = self._row(f"{', '.join(_ARRAYS)}, focus, estimator, n_context", query)
        if row is None:
            raise KeyError(query)
        *arrays, focus, estimator, n_context = row
        return Scores(
            **{name: np.frombuffer(content) for name, content in zip(_ARRAYS, arrays, strict=True)},
            focus=np.frombuffer(focus, dtype=np.bool_),
            estimator=Estimator(estimator),
            n_context=n_context,
        )

    def put(self, query: Query, scores: Scores) -> None:
        """Write an answer to disk before it is used.

        Raises:
            DataError: if it cannot be written.
        """
        try:
            if self._connection is None:
                self._connection = _create(self.path, self._identity)
            arrays = [np.asarray(getattr(scores, name), dtype=np.float64).tobytes() for name in _ARRAYS]
            row = (digest(asdict(query)), *arrays, scores.focus.tobytes(), scores.estimator.value, scores.n_context)
            self._connection.execute(f"INSERT OR REPLACE INTO answers VALUES ({', '.join('?' * len(row))})", row)
        except (OSError, sqlite3.Error) as error:
            raise DataError(f"cannot write the cache {self.path}: {error}; what it holds is kept") from error

    def __enter__(self) -> Self:
        """Return the cache itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()

    def _row(self, columns: str, query: Query) -> tuple[Any, ...] | None:
        if self._connection is None:
            return None
        asked = f"SELECT {columns} FROM answers WHERE query = ?"
        row: tuple[Any, ...] | None = self._connection.execute(asked, (digest(asdict(query)),)).fetchone()
        return row


def open_cache(path: Path, identity: Mapping[str, Scalar]) -> ProbeCache:
    """Open the answers of a model; a new file is written at the first answer.

    Raises:
        ConfigError: if the file is not such a cache, or one of another model.
        DataError: if it cannot be read.
    """
    if not path.exists() or not path.stat().st_size:
        return ProbeCache(path, identity, None)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        _check_identity(path, _stored_identity(connection), identity)
    except sqlite3.Error as error:
        connection.close()
        if isinstance(error, sqlite3.OperationalError) and "no such table" not in str(error):
            raise DataError(f"cannot read the cache {path}: {error}") from error
        raise ConfigError(f"{path} is not a cache of deltah probe; give another --out, or remove the file") from error
    except ConfigError:
        connection.close()
        raise
    return ProbeCache(path, identity, connection)


def identity_on_disk(path: Path) -> dict[str, Scalar]:
    """Identity of the model whose answers a file holds; empty if it holds none."""
    if not path.exists():
        return {}
    connection = sqlite3.connect(path)
    try:
        return _stored_identity(connection)
    except sqlite3.Error:
        return {}  # `open_cache` says what is wrong with it
    finally:
        connection.close()


def _create(path: Path, identity: Mapping[str, Scalar]) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN")
    connection.execute(_IDENTITY_TABLE)
    connection.execute(_ANSWERS_TABLE)
    connection.execute("INSERT INTO identity VALUES (?)", (json.dumps(identity),))
    connection.execute("COMMIT")
    return connection


def _stored_identity(connection: sqlite3.Connection) -> dict[str, Scalar]:
    stored: dict[str, Scalar] = json.loads(connection.execute("SELECT content FROM identity").fetchone()[0])
    return stored


def _check_identity(path: Path, old: Mapping[str, Scalar], new: Mapping[str, Scalar]) -> None:
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if keys:
        changes = "; ".join(f"{key}: {old.get(key)!r} then, {new.get(key)!r} now" for key in keys)
        raise ConfigError(
            f"the cache {path} holds answers of another model or setting ({changes}); give the same options to "
            "continue, or another --out"
        )

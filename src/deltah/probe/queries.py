"""What a probe asks of a model, and the answers on disk.

A query asks for the probability of each token of a continuation (logged tokens, or a text) in a context (the tokens
that the policy saw, or chat messages). A backend turns a `Query` into `Scores`. The cache keeps every answer in SQLite,
so that a killed probe repeats no query that was answered.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from deltah.core.types import BoolArray, Estimator, FloatArray, Scalar, Trajectory
from deltah.errors import ConfigError, DataError, DeltahError
from deltah.traces.messages import Message


class QueryError(DeltahError, RuntimeError):
    """A query that the model cannot answer; its call is listed as not probed and the run goes on."""


class ContextTooLongError(QueryError):
    """Context and continuation are longer than the model's window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenContext:
    """The exact tokens before the continuation."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatContext:
    """Messages before the continuation."""

    messages: tuple[Message, ...]
    open_text: str = ""
    """Start of the assistant message that the continuation goes on in; empty: the continuation starts a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenContinuation:
    """Logged tokens."""

    ids: tuple[int, ...]
    focus: tuple[bool, ...]
    """The tokens that the statistics are about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextContinuation:
    """A text; the statistics are about what lies between its first `opener` and its last `closer` characters."""

    text: str
    opener: int = 0
    closer: int = 0


Context: TypeAlias = TokenContext | ChatContext
Continuation: TypeAlias = TokenContinuation | TextContinuation


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A continuation in a context."""

    context: Context
    continuation: Continuation


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A model's answer to one query: n tokens of the continuation."""

    logprobs: FloatArray
    """(n,) log-probability of each token, nats."""
    entropy: FloatArray
    """(n,) nats; exact, or the point estimate; NaN where not measured."""
    lower: FloatArray
    """(n,) certified; `entropy` itself where exact."""
    upper: FloatArray
    """(n,) certified, +inf where no upper bound is known."""
    focus: BoolArray
    """(n,) tokens that the statistics are about."""
    estimator: Estimator
    n_context: int
    """Tokens before the continuation."""

    @property
    def n_tokens(self) -> int:
        """Tokens that the model read for this query."""
        return self.n_context + len(self.logprobs)


class TokenView(Protocol):
    """How a local tokenizer reads: what is needed to splice logged token ids."""

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Text of each token; empty if an id is none of the tokenizer's."""

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the messages before the first turn, generation prompt included."""


class Backend(Protocol):
    """A model that scores continuations: a server, or a local one."""

    @property
    def identity(self) -> Mapping[str, Scalar]:
        """All that decides an answer beside the query; a cache of another identity is refused."""

    @property
    def view(self) -> TokenView | None:
        """How logged token ids are read; None if the backend takes chat messages only."""

    def count(self, query: Query) -> int:
        """Tokens that the model reads for a query: exact where the tokenizer is at hand, else an estimate."""

    def score(self, queries: Sequence[Query]) -> Iterator[Scores]:
        """Answers in the order of the queries, which are those of one call: their prefix can be shared."""


def focus_mask(texts: Sequence[str], opener: int, closer: int) -> BoolArray:
    """(n,) True on the tokens that hold any character after the first `opener` and before the last `closer` ones.

    Counts from both ends, so that tokens of broken characters in the middle do no harm.
    """
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    before, after = np.cumsum(lengths), np.cumsum(lengths[::-1])[::-1]
    return np.asarray((before > opener) & (after > closer), dtype=np.bool_)


def question_key(trajectory: Trajectory) -> str:
    """The question that a trajectory answers: its task id, else the question's text, else its own id."""
    if (task := trajectory.metadata.get("task_id")) is not None:
        return f"task {task}"
    return f"question {trajectory.question}" if trajectory.question is not None else f"id {trajectory.id}"


def digest(value: Any) -> str:
    """SHA-256 of a JSON-like value, as hex digits; equal for equal values in any order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


_ARRAYS = ("logprobs", "entropy", "lower", "upper")
_IDENTITY_TABLE = "CREATE TABLE identity (content TEXT NOT NULL)"
_ANSWERS_TABLE = f"""CREATE TABLE answers (
    query TEXT PRIMARY KEY,
    {", ".join(f"{name} BLOB" for name in _ARRAYS)}, focus BLOB,
    estimator TEXT, n_context INTEGER
) WITHOUT ROWID"""
"""Arrays as the bytes of float64, and of bool."""


class ProbeCache:
    """Answers of one model, by query; open it with `open_cache`. A new file is written at the first answer."""

    def __init__(self, path: Path, identity: Mapping[str, Scalar], *, begun: bool) -> None:
        self.path = path
        self._identity = dict(identity)
        self._connection = sqlite3.connect(path, isolation_level=None) if begun else None

    def __contains__(self, query: Query) -> bool:
        """Whether the answer is known."""
        return self._row(query) is not None

    def __getitem__(self, query: Query) -> Scores:
        """The answer to a query that is `in` the cache."""
        *arrays, focus, estimator, n_context = self._row(query)
        return Scores(
            **{name: np.frombuffer(content) for name, content in zip(_ARRAYS, arrays, strict=True)},
            focus=np.frombuffer(focus, dtype=np.bool_),
            estimator=Estimator(estimator),
            n_context=n_context,
        )

    def put(self, query: Query, scores: Scores) -> None:
        """Write an answer to disk before it is used."""
        arrays = [np.asarray(getattr(scores, name), dtype=np.float64).tobytes() for name in _ARRAYS]
        row = (digest(asdict(query)), *arrays, scores.focus.tobytes(), scores.estimator.value, scores.n_context)
        try:
            connection = self._connection or self._begin()
            connection.execute(f"INSERT OR REPLACE INTO answers VALUES ({', '.join('?' * len(row))})", row)
        except (OSError, sqlite3.Error) as error:
            raise DataError(f"cannot write the cache {self.path}: {error}; what it holds is kept") from error

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()

    def _begin(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(self.path, isolation_level=None)
        for statement in ("BEGIN", _IDENTITY_TABLE, _ANSWERS_TABLE):
            self._connection.execute(statement)
        self._connection.execute("INSERT INTO identity VALUES (?)", (json.dumps(self._identity),))
        self._connection.execute("COMMIT")
        return self._connection

    def _row(self, query: Query) -> Any:
        if self._connection is None:
            return None
        asked = f"SELECT {', '.join(_ARRAYS)}, focus, estimator, n_context FROM answers WHERE query = ?"
        return self._connection.execute(asked, (digest(asdict(query)),)).fetchone()


@contextmanager
def open_cache(path: Path, identity: Mapping[str, Scalar]) -> Iterator[ProbeCache]:
    """Open the answers of a model; a file of another model, or one that is no such cache, is a `ConfigError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    old = identity_on_disk(path)
    changed = [key for key in sorted(old.keys() | identity.keys()) if old.get(key) != identity.get(key)]
    if old and changed:
        changes = "; ".join(f"{key}: {old.get(key)!r} then, {identity.get(key)!r} now" for key in changed)
        raise ConfigError(
            f"the cache {path} holds answers of another model or setting ({changes}); give the same options to "
            "continue, or another --out"
        )
    with closing(ProbeCache(path, identity, begun=bool(old))) as cache:
        yield cache


def identity_on_disk(path: Path) -> dict[str, Scalar]:
    """Identity of the model whose answers a file holds; empty where there is no file, or an empty one."""
    if not path.exists() or not path.stat().st_size:
        return {}
    with closing(sqlite3.connect(path)) as connection:
        try:
            stored: dict[str, Scalar] = json.loads(connection.execute("SELECT content FROM identity").fetchone()[0])
        except sqlite3.Error as error:
            raise ConfigError(
                f"{path} is not a cache of deltah probe, or cannot be read ({error}); give another --out, or remove it"
            ) from error
    return stored

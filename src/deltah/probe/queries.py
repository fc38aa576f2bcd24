"""What a probe asks of a model: the probability of a continuation in a context, token by token.

A context is either the exact tokens that the policy saw, or chat messages that a template or a server renders. A
continuation is either logged tokens or a text. A backend turns a `Query` into `Scores`; it knows nothing of calls,
control results or answers. Index i of every array of a `Scores` speaks of the distribution that token i of the
continuation is drawn from, at temperature 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from deltah.core.types import BoolArray, Estimator, FloatArray, Scalar, Trajectory
from deltah.errors import DeltahError
from deltah.traces.messages import Message


class QueryError(DeltahError, RuntimeError):
    """A single query that a model cannot answer; its call is listed as not probed and the run goes on."""


class ContextTooLongError(QueryError):
    """Context and continuation are longer than the model's window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenContext:
    """The exact tokens before the continuation."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatContext:
    """Messages before the continuation, which starts the next assistant message or goes on in an open one."""

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
    """One continuation in one context."""

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
    """(n,) certified; `entropy` itself when exact."""
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
    """A model that scores continuations."""

    @property
    def identity(self) -> Mapping[str, Scalar]:
        """All that decides an answer beside the query: a cache of another identity is refused."""

    @property
    def view(self) -> TokenView | None:
        """How logged token ids are read; None: the backend takes chat messages only."""

    def count(self, query: Query) -> int:
        """Tokens that the model reads for a query: exact where the tokenizer is at hand, else an estimate.

        Raises:
            QueryError: if it can already be told that the query cannot be answered.
        """

    def score(self, queries: Sequence[Query]) -> Iterator[Scores]:
        """Answers in the order of the queries; those of one call come together, so that their prefix can be shared.

        Raises:
            QueryError: for a query that this model cannot answer.
            DeltahError: if the model is gone, refuses access, or does not do what a probe needs.
        """


def focus_mask(texts: Sequence[str], opener: int, closer: int) -> BoolArray:
    """(n,) True on the tokens that hold any character after the first `opener` and before the last `closer` ones.

    Counts from both ends, so that tokens of broken characters in the middle do no harm.
    """
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    before, after = np.cumsum(lengths), np.cumsum(lengths[::-1])[::-1]
    return np.asarray((before > opener) & (after > closer), dtype=np.bool_)


def question_key(trajectory: Trajectory) -> str:
    """What question a trajectory answers: its task id, else the question's text, else its own id."""
    task = trajectory.metadata.get("task_id")
    if task is not None:
        return f"task {task}"
    return f"question {trajectory.question}" if trajectory.question is not None else f"id {trajectory.id}"


def digest(value: Any) -> str:
    """SHA-256 of a JSON-like value, as hex digits; equal for equal values in any order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()

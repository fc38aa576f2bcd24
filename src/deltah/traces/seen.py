"""Different tokens that a chat log shows: more of them than a stated vocabulary holds refute its size.

A vocabulary size that is too small makes certified bounds false. What a log shows gives a lower bound of the true one:
drawn tokens count (after the first `DENSE_TOKENS` those of every `STRIDE`-th trajectory, as new ones have become rare),
and so do the alternatives of the first lines (`SAMPLE_BYTES`), which are many more but would cost as much to read as
all else. Only texts of ASCII count: one token always prints them alike, while the bytes of any
other character may be spread over tokens, or several tokens share one entry. Kept are at most V + 1 drawn texts for
each of `MAX_MODELS` models, so memory does not grow with the log. A size that nothing here refutes may still be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeAlias
from zlib import crc32

import msgspec
import numpy as np

from deltah.errors import VocabularySizeError
from deltah.traces.dialogue import Facts

SAMPLE_BYTES: Final = 500_000
"""Of lines whose alternatives are read by their texts."""
DENSE_TOKENS: Final = 50_000
STRIDE: Final = 8
MAX_MODELS: Final = 16

_Key: TypeAlias = tuple[str | None, int | None]
"""Model and vocabulary size that a line states: tokens of different models are not counted together."""


class SeenTokens:
    """Texts of the different tokens of one log, by model."""

    def __init__(self) -> None:
        """Start a log."""
        self._models: dict[_Key, _Texts] = {}
        self._left = SAMPLE_BYTES
        self._n_drawn = self._n_trajectories = 0

    def sample(self, line: bytes, facts: Facts) -> None:
        """Count the alternatives of a line, if it is among the first.

        Args:
            line: JSON text of a line that could be read.
            facts: What it says of its model.
        """
        if self._left <= 0:
            return
        self._left -= len(line)
        texts = self._of(facts)
        if texts is not None:
            texts.sample(_alternatives(line))

    def check(self, facts: Facts, drawn: Sequence[str], vocab_size: int) -> None:
        """Count the drawn tokens of a trajectory.

        Args:
            facts: What the trajectory's lines say of its model.
            drawn: (T,) texts.
            vocab_size: V.

        Raises:
            VocabularySizeError: if the log has shown more than V different tokens of this model.
        """
        self._n_drawn += len(drawn)
        self._n_trajectories += 1
        left_out = self._n_drawn > DENSE_TOKENS and self._n_trajectories % STRIDE
        texts = self._of(facts)
        if texts is not None:
            _refuse_more(texts.count(() if left_out else drawn, vocab_size), vocab_size, facts.model)

    def check_all(self, vocab_size: int) -> None:
        """Check a size against all tokens so far of each model whose size no line states; errors as in `check`."""
        for (model, stated), texts in self._models.items():
            if not stated:
                _refuse_more(texts.count((), vocab_size), vocab_size, model)

    def refuted(self, size_of: Callable[[str], int | None]) -> Iterator[tuple[str, VocabularySizeError]]:
        """Models whose size no line states and of which the log has shown more tokens than a size that is assumed.

        Args:
            size_of: V of a model; None: unknown.
        """
        for (model, stated), texts in self._models.items():
            if model is not None and not stated and (size := size_of(model)) is not None:
                try:
                    _refuse_more(texts.count((), size), size, model)
                except VocabularySizeError as error:
                    yield model, error

    def merge(self, other: SeenTokens) -> None:
        """Count the tokens of a part of the same log."""
        self._left -= SAMPLE_BYTES - other._left
        self._n_drawn += other._n_drawn
        self._n_trajectories += other._n_trajectories
        for key, texts in other._models.items():
            if (mine := self._of_key(key)) is not None:
                mine.merge(texts)

    def _of(self, facts: Facts) -> _Texts | None:
        """Texts seen of a model; None where there are too many models to count."""
        return self._of_key((facts.model, facts.vocab_size))

    def _of_key(self, key: _Key) -> _Texts | None:
        if key not in self._models and len(self._models) == MAX_MODELS:
            return None
        return self._models.setdefault(key, _Texts())


def _refuse_more(n: int, vocab_size: int, model: str | None) -> None:
    if n > vocab_size:
        whose = "" if model is None else f" of {model}"
        raise VocabularySizeError(f"the log holds at least {n:,} different tokens{whose}", vocab_size)


def _hash(text: str) -> int:
    """The same in every process; two texts that share it count as one, which errs towards silence."""
    return crc32(text.encode("ascii"))


class _Texts:
    """Different texts of one model."""

    def __init__(self) -> None:
        self._drawn: set[str] = set()
        self._sampled = np.zeros(0, dtype=np.int64)
        """Hashes of the alternatives: strings kept from among those of a line would scatter the memory it leaves."""
        self._counted = 0
        """Size of `_drawn` up to which there are certainly no more texts than the limit."""

    def sample(self, texts: Iterable[str]) -> None:
        hashes = {_hash(text) for text in set(texts) if text.isascii()}
        self._sampled = np.array([*hashes.union(self._sampled.tolist())], dtype=np.int64)
        self._counted = 0

    def merge(self, other: _Texts) -> None:
        self._drawn |= other._drawn
        self._sampled = np.array([*{*self._sampled.tolist(), *other._sampled.tolist()}], dtype=np.int64)
        self._counted = 0

    def count(self, drawn: Sequence[str], limit: int) -> int:
        """Different texts with those of `drawn`; 0 where there are certainly no more than the limit."""
        if len(self._drawn) <= limit:
            self._drawn.update(drawn)
        if len(self._drawn) <= max(self._counted, limit - len(self._sampled)):
            return 0
        # Only now does it matter which of them count, and which were among the alternatives.
        self._drawn = {text for text in self._drawn if text.isascii()}
        n = len({*self._sampled.tolist(), *map(_hash, self._drawn)})
        self._counted = len(self._drawn) + limit - n
        return n


class _Alternative(msgspec.Struct, gc=False):
    token: str = ""


class _Token(msgspec.Struct, gc=False):
    top_logprobs: list[_Alternative] | None = None


class _Block(msgspec.Struct):
    content: list[_Token] | None = None


class _Message(msgspec.Struct):
    logprobs: _Block | list[_Token] | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    logprobs: _Block | list[_Token] | None = None


class _Response(msgspec.Struct):
    choices: list[_Choice] | None = None
    body: _Response | None = None


class _Line(msgspec.Struct):
    """The parts of `deltah.traces.chatlog.ChatLine` that hold alternatives, with their texts."""

    messages: list[_Message] | None = None
    response: _Response | list[_Response] | str | None = None
    chunks: list[_Response] | None = None
    choices: list[_Choice] | None = None


_DECODER = msgspec.json.Decoder(_Line)


def _alternatives(line: bytes) -> Iterator[str]:
    """Texts of all alternatives of a line; none where a server writes them in another form."""
    try:
        log = _DECODER.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    responses = log.response if isinstance(log.response, list) else [log.response]
    whole = [part.body or part for part in (*responses, *(log.chunks or ())) if isinstance(part, _Response)]
    choices = [*(log.choices or ()), *(choice for part in whole for choice in part.choices or ())]
    messages = [*(log.messages or ()), *(choice.message for choice in choices if choice.message is not None)]
    for holder in (*choices, *messages):
        block = holder.logprobs
        for token in (block.content if isinstance(block, _Block) else block) or ():
            yield from [alternative.token for alternative in token.top_logprobs or ()]

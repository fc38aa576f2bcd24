"""What the cold start trains on: teacher traces, recitations of the known facts, copy drills.

An `Example` is a token sequence with the positions that carry loss. A trace puts loss on what the policy will write
(the tokens of assistant turns, end of turn included); early in training also on tool results, which teaches copying
from context. A recitation is a search result made of known documents only. A copy drill repeats random names and
numbers, and carries loss on the second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deltah.lab.questions import questions
from deltah.lab.world import NAMED_KINDS, Kind, Split, World
from deltah.tools.python import make_python
from deltah.tools.search import SearchIndex, make_search

from .teacher import Message, TeacherConfig, Tools, random_name, rollout
from .tokenizer import ASSISTANT, END, MAX_NUMBER, TOOL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Example:
    """One training sequence."""

    ids: NDArray[np.int64]
    """(T,)"""
    policy: NDArray[np.bool_]
    """(T,) True where a token carries loss in every phase."""
    context: NDArray[np.bool_]
    """(T,) True where a token carries loss in the early phase: the policy tokens and the tool results."""

    def __len__(self) -> int:
        """Number of tokens T."""
        return len(self.ids)


def world_tools(world: World, python: Callable[[str], str] | None = None) -> Tools:
    """The shipped tools over a world's corpus; results are remembered, since teachers of one world ask alike.

    Args:
        world: Its documents are the corpus.
        python: A `python` tool to share between worlds; by default a new one.
    """
    search = make_search(SearchIndex(world.documents), top_k=2)
    return {"search": cache(search), "python": cache(python or make_python())}


def spans(ids: NDArray[np.int64], start_id: int, end_id: int) -> NDArray[np.bool_]:
    """(T,) True after each start token up to and including the next end token."""
    inside, mask = False, np.zeros(len(ids), dtype=np.bool_)
    for t, token in enumerate(ids):
        mask[t] = inside
        if token == start_id:
            inside = True
        elif token == end_id:
            inside = False
    return mask


def trace_example(messages: list[Message], tokenizer: PreTrainedTokenizerFast) -> Example:
    """Render a conversation through the chat template and mark what carries loss."""
    text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)
    assistant, tool, end = (tokenizer.convert_tokens_to_ids(t) for t in (ASSISTANT, TOOL, END))
    policy = spans(ids, assistant, end)
    return Example(ids, policy, policy | spans(ids, tool, end))


def traces(
    n: int, *, worlds: int, seed: int, config: TeacherConfig, tokenizer: PreTrainedTokenizerFast
) -> Iterator[Example]:
    """Yield n teacher traces, spread evenly over cold-start worlds that are resampled for each."""
    rng, python = np.random.default_rng([seed, 10]), make_python()
    for i in range(worlds):
        world = World(seed * 100_003 + i, Split.COLDSTART)
        tools = world_tools(world, python)
        for question in questions(world, n * (i + 1) // worlds - n * i // worlds, seed=i):
            yield trace_example(rollout(question, tools, config, rng), tokenizer)


def recitation(world: World, tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator, *, n: int = 4) -> Example:
    """A search result made of n known documents, all of it with loss."""
    kinds = [kind for kind in NAMED_KINDS if kind is not Kind.COIN]
    known = [(kind, name) for kind in kinds for name in world.known[kind]]
    drawn = [world.document(*known[i]).contents for i in rng.choice(len(known), size=n, replace=False)]
    text = f"{TOOL} " + "\n ".join(drawn) + END
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)
    mask = np.ones(len(ids), dtype=np.bool_)
    return Example(ids, mask, mask)


def copy_drill(tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator) -> Example:
    """Random names and numbers in a result, then the same again as the policy's text, which carries the loss."""
    items = [
        str(rng.integers(MAX_NUMBER + 1)) if rng.random() < 0.6 else random_name(NAMED_KINDS[int(rng.integers(5))], rng)
        for _ in range(int(rng.integers(3, 10)))
    ]
    text = " ".join(items)
    return trace_example(
        [{"role": "tool", "name": "search", "content": text}, {"role": "assistant", "content": text}], tokenizer
    )


def batches(
    examples: Sequence[Example], *, tokens: int, rng: np.random.Generator, pool: int = 16
) -> Iterator[list[int]]:
    """Yield batches of indices, one epoch: sequences of like length, at most `tokens` with their padding.

    Args:
        examples: What to draw from; each is used once.
        tokens: Padded size of a batch; a single longer sequence forms its own.
        rng: Source of the order.
        pool: Sorting is within pools of about this many batches, so that batches stay random.
    """
    order = rng.permutation(len(examples))
    mean = sum(map(len, examples)) / len(examples)
    size = max(1, int(pool * tokens / mean))
    for start in range(0, len(order), size):
        chunk = sorted(order[start : start + size], key=lambda i: len(examples[i]))
        cut = list(_cut([len(examples[i]) for i in chunk], tokens))
        for i in rng.permutation(len(cut)):
            yield [int(chunk[j]) for j in cut[i]]


def _cut(lengths: Sequence[int], tokens: int) -> Iterator[range]:
    """Cut sorted lengths into runs whose count times longest stays within `tokens`."""
    start = 0
    for stop in range(1, len(lengths) + 1):
        if stop == len(lengths) or lengths[stop] * (stop + 1 - start) > tokens:
            yield range(start, stop)
            start = stop

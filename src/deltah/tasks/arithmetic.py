"""Arithmetic word problems from a seed, so that math tasks exist without a download.

Each problem is two or three sentences of plain English about one person and some things, and takes two steps; every
number on the way is a positive integer below 1000. The same seed gives the same problems, and the first n of a longer
list are the list of n.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deltah.errors import InvalidValueError
from deltah.tasks.types import Task, TaskKind

_PEOPLE = ("Anna", "Ben", "Clara", "David", "Elena", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kira", "Leo")
_THINGS = ("apples", "books", "candles", "coins", "eggs", "marbles", "pencils", "shells", "stamps", "tickets")

_Template = Callable[[np.random.Generator, str, str], tuple[str, int]]


def generate_arithmetic(n: int, seed: int) -> list[Task]:
    """Make n problems of kind `math` with ids `arithmetic-SEED-I`.

    Raises:
        InvalidValueError: if n or the seed is negative.
    """
    if n < 0 or seed < 0:
        raise InvalidValueError(f"arithmetic problems need n >= 0 and seed >= 0; got n={n}, seed={seed}")
    rng = np.random.default_rng(seed)
    return [_problem(rng, f"arithmetic-{seed}-{i}") for i in range(n)]


def _problem(rng: np.random.Generator, identifier: str) -> Task:
    template = _TEMPLATES[int(rng.integers(len(_TEMPLATES)))]
    who, what = (str(rng.choice(names)) for names in (_PEOPLE, _THINGS))
    question, answer = template(rng, who, what)
    return Task(
        id=identifier,
        question=question,
        golden_answers=(str(answer),),
        kind=TaskKind.MATH,
        metadata={"template": template.__name__.lstrip("_")},
    )


def _between(rng: np.random.Generator, low: int, high: int) -> int:
    """A number from low to high, both included."""
    return int(rng.integers(low, high + 1))


def _buy_and_give(rng: np.random.Generator, who: str, what: str) -> tuple[str, int]:
    start, more = _between(rng, 12, 400), _between(rng, 12, 400)
    given = _between(rng, 2, start + more - 1)
    text = f"{who} has {start} {what} and buys {more} more. Then {who} gives away {given} of them. How many are left?"
    return text, start + more - given


def _boxes(rng: np.random.Generator, who: str, what: str) -> tuple[str, int]:
    boxes, each, loose = _between(rng, 3, 20), _between(rng, 3, 40), _between(rng, 2, 90)
    text = (
        f"{who} packs {boxes} boxes with {each} {what} in each box, and {loose} {what} do not fit. "
        f"How many {what} are there in all?"
    )
    return text, boxes * each + loose


def _price(rng: np.random.Generator, who: str, what: str) -> tuple[str, int]:
    count, price = _between(rng, 2, 20), _between(rng, 2, 25)
    paid = count * price + _between(rng, 1, 99)
    text = (
        f"{who} buys {count} {what} that cost {price} coins each and pays with {paid} coins. "
        f"How many coins does {who} get back?"
    )
    return text, paid - count * price


def _share(rng: np.random.Generator, who: str, what: str) -> tuple[str, int]:
    friends, each, kept = _between(rng, 2, 12), _between(rng, 2, 60), _between(rng, 2, 90)
    text = (
        f"{who} has {friends * each + kept} {what}, keeps {kept} and shares the rest equally among {friends} friends. "
        f"How many {what} does each friend get?"
    )
    return text, each


_TEMPLATES: tuple[_Template, ...] = (_buy_and_give, _boxes, _price, _share)

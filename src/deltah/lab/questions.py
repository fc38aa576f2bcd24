"""Questions about a world: one to three hops, arithmetic, and the sum of two populations.

A `Question` is a task (what an environment may know) with its plan (what the scripted teacher may know): the lookups
and computations that answer it. A step is *known* when the agent learned its value by heart: a fact of a known entity,
or a sum of two digits. A task says how many steps are not known (`n_needed_calls`) and nothing else about its calls.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from deltah.lab.world import SCHEMAS, Kind, Relation, Split, World, document_id, pick
from deltah.runs import write_atomic
from deltah.tasks.task_files import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """One fact to recall or to search."""

    subject: str
    relation: Relation
    value: str
    known: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """One number to recall or to compute."""

    words: str
    """The expression in English: "345 plus 278"."""
    code: str
    """The expression in Python: "345 + 278"."""
    value: str
    known: bool


Step: TypeAlias = Lookup | Compute


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A task and the steps that answer it, in order."""

    task: Task
    plan: tuple[Step, ...]


class Family(NamedTuple):
    """Questions of one form."""

    weight: float
    """Relative frequency."""
    text: str
    """The question; `{s}` is the subject of the first relation."""
    chain: tuple[Relation, ...] = ()
    """Relations from the subject to the answer."""


FAMILIES: Mapping[str, Family] = {
    "birthplace": Family(2.0, "Where was {s} born?", (Relation.BIRTHPLACE,)),
    "employer": Family(2.0, "Which company does {s} work for?", (Relation.EMPLOYER,)),
    "seat": Family(1.0, "In which city is {s} based?", (Relation.SEAT,)),
    "country": Family(1.0, "In which country is {s}?", (Relation.COUNTRY,)),
    "population": Family(1.5, "How many thousand people live in {s}?", (Relation.POPULATION,)),
    "coin": Family(1.0, "Which coin is used in {s}?", (Relation.COIN,)),
    "birth_country": Family(2.0, "In which country was {s} born?", (Relation.BIRTHPLACE, Relation.COUNTRY)),
    "work_city": Family(2.0, "In which city is the employer of {s} based?", (Relation.EMPLOYER, Relation.SEAT)),
    "city_coin": Family(1.5, "Which coin is used in the city of {s}?", (Relation.COUNTRY, Relation.COIN)),
    "birth_coin": Family(
        1.5,
        "Which coin is used in the country where {s} was born?",
        (Relation.BIRTHPLACE, Relation.COUNTRY, Relation.COIN),
    ),
    "work_country": Family(
        1.5, "In which country is the employer of {s} based?", (Relation.EMPLOYER, Relation.SEAT, Relation.COUNTRY)
    ),
    "small_arithmetic": Family(1.5, "What is {words}?"),
    "large_arithmetic": Family(3.0, "What is {words}?"),
    "combined_population": Family(2.0, "What is the combined population, in thousands, of {a} and {b}?"),
}
OPERATORS: Mapping[str, str] = {"plus": "+", "minus": "-", "times": "*"}
NUMBER_LIMIT = 400
"""Numbers of questions and their answers stay below this."""
KNOWN_SUBJECT = 0.4
"""Probability that the first subject of a question is a known entity."""


def _subject(world: World, kind: Kind, rng: np.random.Generator) -> str:
    return pick((world.known if rng.random() < KNOWN_SUBJECT else world.new)[kind], rng)


def _lookup(world: World, subject: str, relation: Relation) -> Lookup:
    value, known = world.facts[subject, relation], subject in world.known_names
    return Lookup(subject=subject, relation=relation, value=value, known=known)


def _compute(a: int, operator: str, b: int, *, known: bool = False) -> Compute:
    value = {"plus": a + b, "minus": a - b, "times": a * b}[operator]
    return Compute(words=f"{a} {operator} {b}", code=f"{a} {OPERATORS[operator]} {b}", value=str(value), known=known)


def _large(rng: np.random.Generator) -> Compute:
    """A sum, difference or product whose numbers and value stay below `NUMBER_LIMIT`, so that each is one token."""
    operator = pick(("plus", "plus", "minus", "times"), rng)
    if operator == "times":
        a = int(rng.integers(11, 31))
        return _compute(a, operator, int(rng.integers(11, (NUMBER_LIMIT - 1) // a + 1)))
    total = int(rng.integers(100, NUMBER_LIMIT))
    part = int(rng.integers(20, total - 19))
    return _compute(part, operator, total - part) if operator == "plus" else _compute(total, operator, part)


def _draw(world: World, name: str, rng: np.random.Generator) -> tuple[str, tuple[Step, ...]]:
    """Text and plan of a question of a family."""
    family = FAMILIES[name]
    if family.chain:
        subject = _subject(world, SCHEMAS[family.chain[0]].subject, rng)
        text, plan = family.text.format(s=subject), []
        for relation in family.chain:
            plan.append(_lookup(world, subject, relation))
            subject = plan[-1].value
        return text, tuple(plan)
    if name == "combined_population":
        a = b = _subject(world, Kind.CITY, rng)
        while b == a:
            b = _subject(world, Kind.CITY, rng)
        first, second = (_lookup(world, city, Relation.POPULATION) for city in (a, b))
        return family.text.format(a=a, b=b), (first, second, _compute(int(first.value), "plus", int(second.value)))
    if name == "small_arithmetic":
        a, b = rng.integers(1, 10, size=2).tolist()
        step = _compute(a, "plus", b, known=True)
    else:
        step = _large(rng)
    return family.text.format(words=step.words), (step,)


def questions(world: World, n: int, *, seed: int) -> Iterator[Question]:
    """Yield n questions about a world, families drawn by their weight; the same seed yields the same questions."""
    rng = np.random.default_rng([seed, 3])
    families, weights = list(FAMILIES), np.array([family.weight for family in FAMILIES.values()])
    for i in range(n):
        family = families[rng.choice(len(families), p=weights / weights.sum())]
        text, plan = _draw(world, family, rng)
        needed = sum(not step.known for step in plan)
        lookups = [step for step in plan if isinstance(step, Lookup)]
        task = Task(
            id=f"{world.split}-{world.seed}-{seed}-{i:05d}",
            question=text,
            golden_answers=(plan[-1].value,),
            supporting=tuple(document_id(SCHEMAS[step.relation].subject, step.subject) for step in lookups),
            metadata={
                "family": family,
                "split": world.split.value,
                "hops": len(lookups),
                "n_needed_calls": needed,
                "needs_tools": needed > 0,
            },
        )
        yield Question(task=task, plan=plan)


def write_split(directory: str | Path, split: Split, *, seed: int = 0, n: int = 512) -> tuple[Path, Path]:
    """Write n tasks and the corpus of one world as ordinary data files; paths of `tasks.jsonl` and `corpus.jsonl`."""
    world = World(seed, Split(split))
    tasks, corpus = Path(directory) / "tasks.jsonl", Path(directory) / "corpus.jsonl"
    asked = (question.task for question in questions(world, n, seed=seed))
    for path, rows in ((corpus, world.documents), (tasks, asked)):
        write_atomic(path, "".join(json.dumps(asdict(row)) + "\n" for row in rows))
    return tasks, corpus

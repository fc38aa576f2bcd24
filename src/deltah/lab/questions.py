"""Questions about a world: one to three hops, arithmetic, and the sum of two populations.

A `Question` is a task (what an environment may know) with its plan (what the scripted teacher may know): the chain of
lookups and computations that answers it. A step is *known* when the agent learned its value by heart: a fact of a known
entity, or a sum of two digits. A task says how many steps are not known (`n_needed_calls`) and nothing else about its
calls.

`write_split` writes the two files that `deltah train --tasks ... --corpus ...` reads like any user's data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeAlias

import numpy as np

from deltah.lab.world import SCHEMAS, Kind, Relation, Split, World, document_id, pick
from deltah.runs import write_atomic
from deltah.tasks.task_files import Task
from deltah.tools.search import Document


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """One fact to recall or to search."""

    subject: str
    relation: Relation
    value: str
    known: bool

    @property
    def kind(self) -> Kind:
        """Kind of the value."""
        return SCHEMAS[self.relation].value


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """One number to recall or to compute."""

    words: str
    """The expression in English: "345 plus 278"."""
    code: str
    """The expression in Python: "345 + 278"."""
    value: str
    known: bool

    @property
    def kind(self) -> Kind:
        """Kind of the value."""
        return Kind.NUMBER


Step: TypeAlias = Lookup | Compute


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A task and the steps that answer it, in order."""

    task: Task
    plan: tuple[Step, ...]

    @property
    def kind(self) -> Kind:
        """Kind of the answer."""
        return self.plan[-1].kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Questions that follow one chain of relations."""

    text: str
    """The question; `{s}` is the first subject."""
    chain: tuple[Relation, ...]


CHAINS: Mapping[str, Family] = {
    "birthplace": Family(text="Where was {s} born?", chain=(Relation.BIRTHPLACE,)),
    "employer": Family(text="Which company does {s} work for?", chain=(Relation.EMPLOYER,)),
    "seat": Family(text="In which city is {s} based?", chain=(Relation.SEAT,)),
    "country": Family(text="In which country is {s}?", chain=(Relation.COUNTRY,)),
    "population": Family(text="How many thousand people live in {s}?", chain=(Relation.POPULATION,)),
    "coin": Family(text="Which coin is used in {s}?", chain=(Relation.COIN,)),
    "birth_country": Family(text="In which country was {s} born?", chain=(Relation.BIRTHPLACE, Relation.COUNTRY)),
    "work_city": Family(text="In which city is the employer of {s} based?", chain=(Relation.EMPLOYER, Relation.SEAT)),
    "city_coin": Family(text="Which coin is used in the city of {s}?", chain=(Relation.COUNTRY, Relation.COIN)),
    "birth_coin": Family(
        text="Which coin is used in the country where {s} was born?",
        chain=(Relation.BIRTHPLACE, Relation.COUNTRY, Relation.COIN),
    ),
    "work_country": Family(
        text="In which country is the employer of {s} based?",
        chain=(Relation.EMPLOYER, Relation.SEAT, Relation.COUNTRY),
    ),
}

OPERATORS: Mapping[str, str] = {"plus": "+", "minus": "-", "times": "*"}

ARITHMETIC_TEXT = "What is {words}?"
COMBINED_TEXT = "What is the combined population, in thousands, of {a} and {b}?"

WEIGHTS: Mapping[str, float] = {
    "birthplace": 2.0,
    "employer": 2.0,
    "seat": 1.0,
    "country": 1.0,
    "population": 1.5,
    "coin": 1.0,
    "birth_country": 2.0,
    "work_city": 2.0,
    "city_coin": 1.5,
    "birth_coin": 1.5,
    "work_country": 1.5,
    "small_arithmetic": 1.5,
    "large_arithmetic": 3.0,
    "combined_population": 2.0,
}
"""Relative frequency of each family."""

NUMBER_LIMIT = 400
"""Numbers of questions and their answers stay below this."""

KNOWN_SUBJECT = 0.4
"""Probability that the first subject of a question is a known entity."""


def _subject(world: World, kind: Kind, rng: np.random.Generator) -> str:
    return pick((world.known if rng.random() < KNOWN_SUBJECT else world.new)[kind], rng)


def _lookup(world: World, subject: str, relation: Relation) -> Lookup:
    value, known = world.facts[subject, relation], subject in world.known_names
    return Lookup(subject=subject, relation=relation, value=value, known=known)


def _chain(world: World, family: Family, rng: np.random.Generator) -> tuple[str, tuple[Step, ...]]:
    subject = _subject(world, SCHEMAS[family.chain[0]].subject, rng)
    text, plan = family.text.format(s=subject), []
    for relation in family.chain:
        plan.append(_lookup(world, subject, relation))
        subject = plan[-1].value
    return text, tuple(plan)


def _compute(a: int, operator: str, b: int, *, known: bool) -> Compute:
    value = {"plus": a + b, "minus": a - b, "times": a * b}[operator]
    return Compute(words=f"{a} {operator} {b}", code=f"{a} {OPERATORS[operator]} {b}", value=str(value), known=known)


def _large(rng: np.random.Generator) -> Compute:
    """A sum, difference or product whose numbers and value stay below `NUMBER_LIMIT`, so that each is one token."""
    operator = pick(("plus", "plus", "minus", "times"), rng)
    if operator == "times":
        a = int(rng.integers(11, 31))
        return _compute(a, operator, int(rng.integers(11, (NUMBER_LIMIT - 1) // a + 1)), known=False)
    total = int(rng.integers(100, NUMBER_LIMIT))
    part = int(rng.integers(20, total - 19))
    return _compute(*((part, "plus", total - part) if operator == "plus" else (total, "minus", part)), known=False)


def _combined(world: World, rng: np.random.Generator) -> tuple[str, tuple[Step, ...]]:
    a = _subject(world, Kind.CITY, rng)
    b = _subject(world, Kind.CITY, rng)
    while b == a:
        b = _subject(world, Kind.CITY, rng)
    first, second = (_lookup(world, city, Relation.POPULATION) for city in (a, b))
    total = _compute(int(first.value), "plus", int(second.value), known=False)
    return COMBINED_TEXT.format(a=a, b=b), (first, second, total)


def _draw(world: World, family: str, rng: np.random.Generator) -> tuple[str, tuple[Step, ...]]:
    if family in CHAINS:
        return _chain(world, CHAINS[family], rng)
    if family == "combined_population":
        return _combined(world, rng)
    if family == "small_arithmetic":
        a, b = (int(x) for x in rng.integers(1, 10, size=2))
        step = _compute(a, "plus", b, known=True)
    else:
        step = _large(rng)
    return ARITHMETIC_TEXT.format(words=step.words), (step,)


def ask(world: World, family: str, rng: np.random.Generator, *, task_id: str) -> Question:
    """Draw one question of a family."""
    text, plan = _draw(world, family, rng)
    needed = sum(not step.known for step in plan)
    lookups = [step for step in plan if isinstance(step, Lookup)]
    task = Task(
        id=task_id,
        question=text,
        golden_answers=(plan[-1].value,),
        supporting=tuple(document_id(SCHEMAS[s.relation].subject, s.subject) for s in lookups),
        metadata={
            "family": family,
            "split": world.split.value,
            "hops": len(lookups),
            "n_needed_calls": needed,
            "needs_tools": needed > 0,
        },
    )
    return Question(task=task, plan=plan)


def questions(world: World, n: int, *, seed: int) -> Iterator[Question]:
    """Yield n questions about a world, families drawn by `WEIGHTS`; the same seed yields the same questions."""
    rng = np.random.default_rng([seed, 3])
    families, weights = list(WEIGHTS), np.array(list(WEIGHTS.values()))
    for i in range(n):
        family = families[rng.choice(len(families), p=weights / weights.sum())]
        yield ask(world, family, rng, task_id=f"{world.split}-{world.seed}-{seed}-{i:05d}")


def write_split(directory: str | Path, split: Split, *, seed: int = 0, n: int = 512) -> tuple[Path, Path]:
    """Write n tasks and the corpus of one world as ordinary data files; paths of `tasks.jsonl` and `corpus.jsonl`."""
    world = World(seed, Split(split))
    tasks, corpus = Path(directory) / "tasks.jsonl", Path(directory) / "corpus.jsonl"
    asked = (question.task for question in questions(world, n, seed=seed))
    for path, rows in ((corpus, world.documents), (tasks, asked)):
        write_atomic(path, "".join(json.dumps(_row(row)) + "\n" for row in rows))
    return tasks, corpus


def _row(entry: Document | Task) -> dict[str, object]:
    """Fields of a document or a task, as plain values."""
    values = {field.name: getattr(entry, field.name) for field in fields(entry)}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}

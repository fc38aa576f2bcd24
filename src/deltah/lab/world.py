"""The fictional world: persons, cities, companies, countries and coins, their facts, one short document each.

A fact is a subject, a relation and a value. Half of the entities of a small world are KNOWN: names and facts
are the same in every world, and the cold start teaches them by heart. The others are FRESH: their names are drawn for
this world from the pool of its split, so that their facts can only be found by searching. A known entity refers
to known entities alone, so that a question about it needs no tool at any hop.

The same seed gives the same world. Nothing here knows what the agent believes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType

import numpy as np

from deltah.errors import InvalidValueError
from deltah.lab.names import NAMED_KINDS, Kind, Split, fresh_pool, known_names, pick
from deltah.tools.search import Document


class Relation(StrEnum):
    """What a fact says of its subject."""

    BIRTHPLACE = "birthplace"
    EMPLOYER = "employer"
    SEAT = "seat"
    COUNTRY = "country"
    POPULATION = "population"
    COIN = "coin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """Types and wording of one relation."""

    subject: Kind
    value: Kind
    statement: str
    """Sentence without its full stop; `{s}` is the subject, `{v}` the value."""


SCHEMAS: Mapping[Relation, Schema] = MappingProxyType(
    {
        Relation.BIRTHPLACE: Schema(subject=Kind.PERSON, value=Kind.CITY, statement="{s} was born in {v}"),
        Relation.EMPLOYER: Schema(subject=Kind.PERSON, value=Kind.COMPANY, statement="{s} works for {v}"),
        Relation.SEAT: Schema(subject=Kind.COMPANY, value=Kind.CITY, statement="{s} is based in {v}"),
        Relation.COUNTRY: Schema(subject=Kind.CITY, value=Kind.COUNTRY, statement="{s} is in {v}"),
        Relation.POPULATION: Schema(subject=Kind.CITY, value=Kind.NUMBER, statement="{s} has {v} thousand people"),
        Relation.COIN: Schema(subject=Kind.COUNTRY, value=Kind.COIN, statement="{s} uses the {v}"),
    }
)

DOCUMENTS: Mapping[Kind, str] = MappingProxyType(
    {
        Kind.PERSON: "{s} was born in {birthplace} and works for {employer}.",
        Kind.CITY: "{s} is a city in {country} with {population} thousand people.",
        Kind.COMPANY: "{s} is a company based in {seat}.",
        Kind.COUNTRY: "{s} is a country that uses the {coin}.",
    }
)
"""Text of the one document of each kind of subject; the fields are its relations."""

POPULATION_RANGE = (10, 200)
"""Thousands of people of a city, half open; two cities together stay below 400."""

DEFAULT_FRESH: Mapping[Split, Mapping[Kind, int]] = MappingProxyType(
    {
        Split.COLDSTART: {Kind.PERSON: 32, Kind.CITY: 16, Kind.COMPANY: 12, Kind.COUNTRY: 8, Kind.COIN: 8},
        Split.TRAIN: {Kind.PERSON: 600, Kind.CITY: 120, Kind.COMPANY: 80, Kind.COUNTRY: 40, Kind.COIN: 40},
        Split.EVAL: {Kind.PERSON: 240, Kind.CITY: 60, Kind.COMPANY: 40, Kind.COUNTRY: 20, Kind.COIN: 20},
    }
)
"""How many fresh entities of each kind a world of a split has."""

_KNOWN_SEED = 20_260_203


def statement(relation: Relation, subject: str, value: str) -> str:
    """A fact as a sentence without its full stop."""
    return SCHEMAS[relation].statement.format(s=subject, v=value)


def document_id(kind: Kind, name: str) -> str:
    """Identifier of an entity's document: "person/mira-kovel"."""
    return f"{kind}/{name.lower().replace(' ', '-')}"


def _draw_facts(
    subjects: Mapping[Kind, tuple[str, ...]], values: Mapping[Kind, tuple[str, ...]], rng: np.random.Generator
) -> dict[tuple[str, Relation], str]:
    """Draw every relation of every subject, uniformly from the values of its kind."""
    facts = {}
    for relation, schema in SCHEMAS.items():
        for subject in subjects[schema.subject]:
            if schema.value is Kind.NUMBER:
                facts[subject, relation] = str(rng.integers(*POPULATION_RANGE))
            else:
                facts[subject, relation] = pick(values[schema.value], rng)
    return facts


@dataclass(frozen=True)
class World:
    """One world of a split.

    Args:
        seed: Which world; worlds of one split with different seeds may share fresh names, of different splits never.
        split: The pool of fresh names.
        fresh: How many fresh entities of each kind; by default `DEFAULT_FRESH`.

    Raises:
        InvalidValueError: if more fresh entities are asked for than the split has names.
    """

    seed: int
    split: Split
    fresh: Mapping[Kind, int] | None = None

    def __post_init__(self) -> None:
        """Check the counts against the pools."""
        for kind, count in self._counts.items():
            available = len(fresh_pool(kind, self.split))
            if not 0 < count <= available:
                raise InvalidValueError(
                    f"a world of split {self.split.value!r} with {count} fresh entities of kind {kind.value!r}; "
                    f"expected 1 to {available}, the names that this split has"
                )

    @property
    def _counts(self) -> Mapping[Kind, int]:
        return {**DEFAULT_FRESH[self.split], **(self.fresh or {})}

    @cached_property
    def known(self) -> Mapping[Kind, tuple[str, ...]]:
        """Names that are the same in every world."""
        return {kind: known_names(kind) for kind in NAMED_KINDS}

    @cached_property
    def new(self) -> Mapping[Kind, tuple[str, ...]]:
        """Fresh names of this world."""
        rng = np.random.default_rng([self.seed, 1])
        drawn = {}
        for kind in NAMED_KINDS:
            pool = fresh_pool(kind, self.split)
            order = rng.permutation(len(pool))[: self._counts[kind]]
            drawn[kind] = tuple(pool[i] for i in order)
        return drawn

    @cached_property
    def facts(self) -> Mapping[tuple[str, Relation], str]:
        """Value of every (subject, relation)."""
        everyone = {kind: self.known[kind] + self.new[kind] for kind in NAMED_KINDS}
        known = _draw_facts(self.known, self.known, np.random.default_rng(_KNOWN_SEED))
        return known | _draw_facts(self.new, everyone, np.random.default_rng([self.seed, 2]))

    @cached_property
    def known_names(self) -> frozenset[str]:
        """Every known name of any kind."""
        return frozenset(name for names in self.known.values() for name in names)

    def document(self, kind: Kind, name: str) -> Document:
        """The one document of an entity."""
        values = {r.value: self.facts[name, r] for r, schema in SCHEMAS.items() if schema.subject is kind}
        return Document(id=document_id(kind, name), contents=DOCUMENTS[kind].format(s=name, **values))

    @cached_property
    def documents(self) -> tuple[Document, ...]:
        """Documents of all entities but coins, known first."""
        return tuple(self.document(kind, name) for kind in DOCUMENTS for name in self.known[kind] + self.new[kind])

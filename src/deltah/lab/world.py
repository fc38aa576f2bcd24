"""The fictional world: persons, cities, companies, countries and coins, their facts, one short document each.

KNOWN entities have the same names and facts in every world, refer to known entities alone, and are taught by heart.
FRESH entities have names of this world, so that their facts can only be found by searching. All names of a kind are
shuffled once, with a constant seed, and cut into pools: the known names, and the fresh ones of each split. Fresh names
of evaluation therefore never occur in training, while both of their parts do. The same seed gives the same world.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, cached_property
from itertools import product
from typing import NamedTuple

import numpy as np

from deltah.errors import InvalidValueError
from deltah.tools.search import Document


class Kind(StrEnum):
    """What a value of the world is."""

    PERSON = "person"
    CITY = "city"
    COMPANY = "company"
    COUNTRY = "country"
    COIN = "coin"
    NUMBER = "number"


class Split(StrEnum):
    """Purpose of a world: many small ones teach the agent, one is of reinforcement learning, one is held out."""

    COLDSTART = "coldstart"
    TRAIN = "train"
    EVAL = "eval"


_PARTS = {
    Kind.PERSON: (
        "Mira Tomas Elin Jaro Sanna Pavel Ilse Doran Vera Anton Lida Rurik Nadia Oskar Tilda Bram Zora Emil "
        "Petra Ivo Greta Milan Hedda Lukan Selma Viktor Runa Casim Olga Stellan Inka Mattis Freya Joren Alma "
        "Radek Signe Borin Katya Leif",
        "Kovel Brandt Tolmen Arvik Sorensk Halder Velin Morrow Castell Ostrik Dahlen Prask Lindor Welk Gorin "
        "Faber Nystad Rovan Kessel Thorne Mirek Jansk Aldous Benko Carrow Delmar Estrin Folk Grell Hollis "
        "Irving Jurick Kramer Lomax Marsk Norrel Orlan Pell Quist Rusk",
    ),
    Kind.CITY: (
        "Port North South Old New Lake Fort Upper East West Great Saint Castle Bright",
        "Anselm Velmora Tarn Brisco Calder Dunmore Elsin Farrow Garth Hollow Istra Jarrow Kelso Lorne Maddox "
        "Nivel Orrin Penrith Quarry Rosta Selby Thessal Ulm Varna Wexel Yarrow Zelen Amber Birch Corvin",
    ),
    Kind.COMPANY: (
        "Tolmek Arden Bexley Corvus Dynar Everon Falk Gantry Helix Ionis Juno Krater Lumen Mersa Novak Orbis "
        "Pallas Quill Ravel Solvi Tessen Umbra Vesta Wolfram",
        "Mining Steel Foods Motors Textiles Shipping Energy Glass Paper Timber Optics Robotics",
    ),
    Kind.COUNTRY: (
        "Inner Outer High Low Royal United Coastal Free",
        "Ostravia Kelmark Brennia Solaria Tavros Meridia Norland Pelagia Rhodan Sarkovia Talmera Urania "
        "Valdoria Westria Yeloria Zamora",
    ),
    Kind.COIN: (
        "silver golden copper iron bronze white black red green blue",
        "dram talon crown florin mark penny shell thaler ducat groat lira peso rand real star obol",
    ),
}
PARTS: Mapping[Kind, tuple[tuple[str, ...], tuple[str, ...]]] = {
    kind: (tuple(first.split()), tuple(second.split())) for kind, (first, second) in _PARTS.items()
}
"""First and second parts of the names of each kind."""
NAMED_KINDS = tuple(PARTS)
KNOWN_COUNT: Mapping[Kind, int] = {Kind.PERSON: 32, Kind.CITY: 16, Kind.COMPANY: 12, Kind.COUNTRY: 8, Kind.COIN: 8}
"""How many names of each kind are the same in every world."""
POOL_SHARE: Mapping[Split, float] = {Split.TRAIN: 0.42, Split.EVAL: 0.18, Split.COLDSTART: 0.4}
"""Share of the other names that each split may draw its fresh entities from."""
_DEAL_SEED = 20_260_202


@cache
def _dealt(kind: Kind) -> tuple[str, ...]:
    """All names of a kind in their one shuffled order."""
    names = [f"{first} {second}" for first, second in product(*PARTS[kind])]
    order = np.random.default_rng([_DEAL_SEED, NAMED_KINDS.index(kind)]).permutation(len(names))
    return tuple(names[i] for i in order)


def known_names(kind: Kind) -> tuple[str, ...]:
    """Names that are the same in every world."""
    return _dealt(kind)[: KNOWN_COUNT[kind]]


@cache
def fresh_pool(kind: Kind, split: Split) -> tuple[str, ...]:
    """Names from which the worlds of a split draw their fresh entities; disjoint between splits."""
    rest = _dealt(kind)[KNOWN_COUNT[kind] :]
    sizes = [int(share * len(rest)) for share in POOL_SHARE.values()]
    at = list(POOL_SHARE).index(split)
    start = sum(sizes[:at])
    return rest[start : start + sizes[at]]


def pick(options: Sequence[str], rng: np.random.Generator) -> str:
    """One option, uniformly."""
    return options[int(rng.integers(len(options)))]


class Relation(StrEnum):
    """Relation of a fact between its subject and its value."""

    BIRTHPLACE = "birthplace"
    EMPLOYER = "employer"
    SEAT = "seat"
    COUNTRY = "country"
    POPULATION = "population"
    COIN = "coin"


class Schema(NamedTuple):
    """Kinds of the subject and the value of a relation."""

    subject: Kind
    value: Kind


SCHEMAS: Mapping[Relation, Schema] = {
    Relation.BIRTHPLACE: Schema(Kind.PERSON, Kind.CITY),
    Relation.EMPLOYER: Schema(Kind.PERSON, Kind.COMPANY),
    Relation.SEAT: Schema(Kind.COMPANY, Kind.CITY),
    Relation.COUNTRY: Schema(Kind.CITY, Kind.COUNTRY),
    Relation.POPULATION: Schema(Kind.CITY, Kind.NUMBER),
    Relation.COIN: Schema(Kind.COUNTRY, Kind.COIN),
}
DOCUMENTS: Mapping[Kind, str] = {
    Kind.PERSON: "{s} was born in {birthplace} and works for {employer}.",
    Kind.CITY: "{s} is a city in {country} with {population} thousand people.",
    Kind.COMPANY: "{s} is a company based in {seat}.",
    Kind.COUNTRY: "{s} is a country that uses the {coin}.",
}
"""Text of the document of each kind of subject; the fields are its relations."""
POPULATION_RANGE = (10, 200)
"""Thousands of people of a city, half open; two cities together stay below 400."""
DEFAULT_FRESH: Mapping[Split, Mapping[Kind, int]] = {
    Split.COLDSTART: {Kind.PERSON: 32, Kind.CITY: 16, Kind.COMPANY: 12, Kind.COUNTRY: 8, Kind.COIN: 8},
    Split.TRAIN: {Kind.PERSON: 600, Kind.CITY: 120, Kind.COMPANY: 80, Kind.COUNTRY: 40, Kind.COIN: 40},
    Split.EVAL: {Kind.PERSON: 240, Kind.CITY: 60, Kind.COMPANY: 40, Kind.COUNTRY: 20, Kind.COIN: 20},
}
"""How many fresh entities of each kind a world of a split has."""
_KNOWN_SEED = 20_260_203


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
    """One world of a split."""

    seed: int
    split: Split
    """The pool of fresh names."""
    fresh: Mapping[Kind, int] | None = None
    """How many fresh entities of each kind; None: `DEFAULT_FRESH`."""

    def __post_init__(self) -> None:
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
            drawn[kind] = tuple(pool[i] for i in rng.permutation(len(pool))[: self._counts[kind]])
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

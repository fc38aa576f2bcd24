"""The fictional world: persons, cities, companies, countries and coins, their facts, one short document each.

A fact is a subject, a relation and a value. Half of the entities of a small world are KNOWN: names and facts
are the same in every world, and the cold start teaches them by heart. The others are FRESH: their names are drawn for
this world from the pool of its split, so that their facts can only be found by searching. A known entity refers
to known entities alone, so that a question about it needs no tool at any hop.

A name is a first part and a second part of its kind ("Mira Kovel", "Port Anselm"), so many entities share a part and
a search must be exact. All pairs of a kind are shuffled once, with a constant seed, and cut into consecutive pools: the
known names, and the fresh ones of each split. Fresh names of evaluation therefore never occur in training, while both
of their parts do.

The same seed gives the same world. Nothing here knows what the agent believes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, cached_property
from itertools import product

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
    """Which world a name, a task or a corpus belongs to."""

    COLDSTART = "coldstart"
    """Many small worlds that teach the agent its trade."""
    TRAIN = "train"
    """The world of reinforcement learning."""
    EVAL = "eval"
    """The held-out world."""


NAMED_KINDS = (Kind.PERSON, Kind.CITY, Kind.COMPANY, Kind.COUNTRY, Kind.COIN)


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


def random_name(kind: Kind, rng: np.random.Generator) -> str:
    """A uniformly random name of a kind, whether or not it exists in some world: what a guess sounds like."""
    first, second = PARTS[kind]
    return f"{pick(first, rng)} {pick(second, rng)}"


def pick(options: Sequence[str], rng: np.random.Generator) -> str:
    """One option, uniformly."""
    return options[int(rng.integers(len(options)))]


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


SCHEMAS: Mapping[Relation, Schema] = {
    Relation.BIRTHPLACE: Schema(subject=Kind.PERSON, value=Kind.CITY, statement="{s} was born in {v}"),
    Relation.EMPLOYER: Schema(subject=Kind.PERSON, value=Kind.COMPANY, statement="{s} works for {v}"),
    Relation.SEAT: Schema(subject=Kind.COMPANY, value=Kind.CITY, statement="{s} is based in {v}"),
    Relation.COUNTRY: Schema(subject=Kind.CITY, value=Kind.COUNTRY, statement="{s} is in {v}"),
    Relation.POPULATION: Schema(subject=Kind.CITY, value=Kind.NUMBER, statement="{s} has {v} thousand people"),
    Relation.COIN: Schema(subject=Kind.COUNTRY, value=Kind.COIN, statement="{s} uses the {v}"),
}

DOCUMENTS: Mapping[Kind, str] = {
    Kind.PERSON: "{s} was born in {birthplace} and works for {employer}.",
    Kind.CITY: "{s} is a city in {country} with {population} thousand people.",
    Kind.COMPANY: "{s} is a company based in {seat}.",
    Kind.COUNTRY: "{s} is a country that uses the {coin}.",
}
"""Text of the one document of each kind of subject; the fields are its relations."""

POPULATION_RANGE = (10, 200)
"""Thousands of people of a city, half open; two cities together stay below 400."""

DEFAULT_FRESH: Mapping[Split, Mapping[Kind, int]] = {
    Split.COLDSTART: {Kind.PERSON: 32, Kind.CITY: 16, Kind.COMPANY: 12, Kind.COUNTRY: 8, Kind.COIN: 8},
    Split.TRAIN: {Kind.PERSON: 600, Kind.CITY: 120, Kind.COMPANY: 80, Kind.COUNTRY: 40, Kind.COIN: 40},
    Split.EVAL: {Kind.PERSON: 240, Kind.CITY: 60, Kind.COMPANY: 40, Kind.COUNTRY: 20, Kind.COIN: 20},
}
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
    """One world of a split."""

    seed: int
    """Which world; worlds of one split with different seeds may share fresh names, of different splits never."""
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

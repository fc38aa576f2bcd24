"""Names of the fictional world: two confusable parts each, dealt out so that splits never share a fresh name.

A name is a first part and a second part of its kind ("Mira Kovel", "Port Anselm"), so many entities share a part and
a search must be exact. All pairs of a kind are shuffled once, with a constant seed, and cut into consecutive pools: the
KNOWN names, which are the same in every world, and one pool of FRESH names for each split. Fresh names of evaluation
therefore never occur in training, while both of their parts do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cache
from itertools import product
from types import MappingProxyType

import numpy as np


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


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PARTS: Mapping[Kind, tuple[tuple[str, ...], tuple[str, ...]]] = MappingProxyType(
    {
        Kind.PERSON: (
            _words(
                """
                Mira Tomas Elin Jaro Sanna Pavel Ilse Doran Vera Anton Lida Rurik Nadia Oskar Tilda Bram Zora Emil
                Petra Ivo Greta Milan Hedda Lukan Selma Viktor Runa Casim Olga Stellan Inka Mattis Freya Joren Alma
                Radek Signe Borin Katya Leif
                """
            ),
            _words(
                """
                Kovel Brandt Tolmen Arvik Sorensk Halder Velin Morrow Castell Ostrik Dahlen Prask Lindor Welk Gorin
                Faber Nystad Rovan Kessel Thorne Mirek Jansk Aldous Benko Carrow Delmar Estrin Folk Grell Hollis
                Irving Jurick Kramer Lomax Marsk Norrel Orlan Pell Quist Rusk
                """
            ),
        ),
        Kind.CITY: (
            _words(
                """
                Port North South Old New Lake Fort Upper East West Great Saint Castle Bright
                """
            ),
            _words(
                """
                Anselm Velmora Tarn Brisco Calder Dunmore Elsin Farrow Garth Hollow Istra Jarrow Kelso Lorne Maddox
                Nivel Orrin Penrith Quarry Rosta Selby Thessal Ulm Varna Wexel Yarrow Zelen Amber Birch Corvin
                """
            ),
        ),
        Kind.COMPANY: (
            _words(
                """
                Tolmek Arden Bexley Corvus Dynar Everon Falk Gantry Helix Ionis Juno Krater Lumen Mersa Novak Orbis
                Pallas Quill Ravel Solvi Tessen Umbra Vesta Wolfram
                """
            ),
            _words(
                """
                Mining Steel Foods Motors Textiles Shipping Energy Glass Paper Timber Optics Robotics
                """
            ),
        ),
        Kind.COUNTRY: (
            _words(
                """
                Inner Outer High Low Royal United Coastal Free
                """
            ),
            _words(
                """
                Ostravia Kelmark Brennia Solaria Tavros Meridia Norland Pelagia Rhodan Sarkovia Talmera Urania
                Valdoria Westria Yeloria Zamora
                """
            ),
        ),
        Kind.COIN: (
            _words(
                """
                silver golden copper iron bronze white black red green blue
                """
            ),
            _words(
                """
                dram talon crown florin mark penny shell thaler ducat groat lira peso rand real star obol
                """
            ),
        ),
    }
)
"""First and second parts of the names of each kind."""

KNOWN_COUNT: Mapping[Kind, int] = MappingProxyType(
    {Kind.PERSON: 32, Kind.CITY: 16, Kind.COMPANY: 12, Kind.COUNTRY: 8, Kind.COIN: 8}
)
"""How many names of each kind are the same in every world."""

POOL_SHARE: Mapping[Split, float] = MappingProxyType({Split.TRAIN: 0.42, Split.EVAL: 0.18, Split.COLDSTART: 0.4})
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
    start = 0
    for other, share in POOL_SHARE.items():
        stop = start + int(share * len(rest))
        if other is split:
            return rest[start:stop]
        start = stop
    raise AssertionError(f"no pool for split {split!r}")  # unreachable: POOL_SHARE names every split


def random_name(kind: Kind, rng: np.random.Generator) -> str:
    """A uniformly random name of a kind, whether or not it exists in some world: what a guess sounds like."""
    first, second = PARTS[kind]
    return f"{pick(first, rng)} {pick(second, rng)}"


def pick(options: Sequence[str], rng: np.random.Generator) -> str:
    """One option, uniformly."""
    return options[int(rng.integers(len(options)))]

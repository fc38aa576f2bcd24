"""When two calls are nearly the same: normalised arguments, queries, pages, code."""

from __future__ import annotations

import pytest
from call_builders import FACT, OTHER, Call, classes, python, search

from deltah.calls.waste import Waste

NEAR, CONTEXT = {Waste.NEAR_DUPLICATE.value}, {Waste.RESULT_IN_CONTEXT.value}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"query": "Mira Kovel, city"}, {"query": "the mira   kovel city?"}),
        ({"query": "capital of France"}, {"query": "“capital France”"}),
        ({"query": "Ａrden Optics"}, {"query": "arden optics"}),
        ({"query": "x", "filter": None}, {"query": "x"}),
        ({"city": "Paris"}, {"city": " 'paris' "}),
        ({"id": "17"}, {"id": 17}),
        ({"queries": ["a b", "c"]}, {"queries": ["A b", "C"]}),
    ],
)
def test_arguments_that_agree_once_normalised(first: object, second: object) -> None:
    for answer in ("21", "No results."):
        assert classes(Call("find_weather", first, answer), Call("find_weather", second, answer)) == [set(), NEAR]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"query": "sort in C++"}, {"query": "sort in C#"}),
        ({"query": "2 + 2"}, {"query": "2 * 2"}),
        ({"query": "jaguar"}, {"query": "-jaguar"}),
        ({"query": "flights from Rome to Oslo"}, {"query": "flights from Oslo to Rome"}),
        ({"query": "is it safe"}, {"query": "is it not safe"}),
        ({"query": "where did he live"}, {"query": "when did he live"}),
        ({"query": "census 2020"}, {"query": "census 2010"}),
    ],
)
def test_queries_that_ask_for_something_else(first: object, second: object) -> None:
    assert classes(Call("web", first, "4"), Call("web", second, "4"))[1] == set()


@pytest.mark.parametrize("key", ["page", "offset", "cursor", "limit", "start_line"])
def test_pagination_is_no_duplicate(key: str) -> None:
    pages = [Call("search", {"query": "Mira Kovel", key: n}, "No more results.") for n in (1, 2, 3)]
    assert classes(search("Mira Kovel", "No more results."), *pages) == [set()] * 4


def test_a_similar_query_is_a_near_duplicate_only_if_it_brings_nothing() -> None:
    first, second = "Mira Kovel current home town", "current Mira Kovel home town address"
    assert classes(search(first, FACT), search(second, FACT))[1] == NEAR | CONTEXT
    assert classes(search(first, FACT), search(second, f"{FACT}\n{OTHER}"))[1] == set()
    assert classes(search(first, "Oslo"), search(second, "Oslo"))[1] == set()


def test_an_unlike_query_that_brings_nothing_is_only_in_context() -> None:
    assert classes(search("Mira Kovel", FACT), search("Tessen Paper staff", FACT))[1] == CONTEXT


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("print(1+2)", "print( 1 + 2 )  # add", True),
        ("x = [1,\n     2]\nprint(sum(x))", "x = [1, 2]\n\nprint(sum(x))", True),
        ("print('a b')", "print('ab')", False),
        ("print('# a')", "print('#')", False),
        ("for i in x:\n  f(i)\ng()", "for i in x:\n  f(i)\n  g()", False),
        ("print(1 + 2)", "print(12)", False),
        ("not python at  all", "not python at all", True),
        ("echo 'a  b", "echo 'a b", False),
    ],
)
def test_code_is_compared_by_its_tokens(first: str, second: str, same: bool) -> None:
    assert classes(python(first, "3"), python(second, "3")) == [set(), NEAR if same else set()]

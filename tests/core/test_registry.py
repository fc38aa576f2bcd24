"""Registries: one decorator, names with choices in their errors, and import paths."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint

import pytest

from deltah import SIGNALS
from deltah.core import registry
from deltah.core.registry import Registry
from deltah.errors import ConfigError, InvalidValueError


@pytest.fixture
def shapes() -> Registry:
    found = Registry("shape")

    @found.register("square", title="a square", unit="m", sides=4)
    def square() -> int:
        """Four equal sides.

        More of it.
        """
        return 4

    return found


def test_an_entry_says_what_the_decorator_was_told(shapes: Registry) -> None:
    entry = shapes["square"]
    assert (entry.title, entry.with_unit, entry.meaning) == ("a square", "a square, m", "Four equal sides")
    assert entry.options["sides"] == 4
    assert entry.value() == 4
    assert (list(shapes), len(shapes)) == (["square"], 1)


def test_an_unknown_name_lists_the_choices(shapes: Registry) -> None:
    with pytest.raises(InvalidValueError, match=r"unknown shape 'circle'; choose one of: square; .*package.module:"):
        shapes.resolve("circle")


def test_a_name_is_taken_once(shapes: Registry) -> None:
    with pytest.raises(InvalidValueError, match="there is a shape named 'square' already"):
        shapes.register("square")(lambda: 5)


def test_an_import_path_is_a_name(shapes: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def circle() -> int:
        """No side."""
        return 0

    module = types.ModuleType("my_shapes")
    module.circle = circle  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_shapes", module)
    entry = shapes.resolve("my_shapes:circle")
    assert (entry.name, entry.title, entry.meaning, entry.value()) == ("my_shapes:circle", "circle", "No side", 0)
    assert "my_shapes:circle" not in shapes
    shapes.register("circle", title="a circle")(circle)
    assert shapes.resolve("my_shapes:circle") is shapes["circle"]


def test_a_wrong_import_path_is_one_sentence(shapes: Registry) -> None:
    with pytest.raises(ConfigError, match=r"shape 'no_such:circle': cannot import 'no_such'.*PYTHONPATH"):
        shapes.resolve("no_such:circle")
    with pytest.raises(ConfigError, match=r"'textwrap' has no function 'circle'; it has .*dedent"):
        shapes.resolve("textwrap:circle")


def test_a_plugin_that_fails_is_named_and_costs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("parts", "no_such_module_of_mine", "deltah.plugins")
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken])
    registry.load_plugins.cache_clear()
    with pytest.warns(UserWarning, match=r"plugin 'parts' \(no_such_module_of_mine\) .* cannot be imported: Module"):
        assert "delta_h" in list(SIGNALS)
    registry.load_plugins.cache_clear()

"""Registries of named things (signals, rewards, importers, ...), and checks of the options that users set on them.

A decorator at the definition fills a registry, so that adding a thing is one place. A name is looked up in the
registry, then as `package.module:attribute`. Installed packages can name modules under the entry point group
`deltah.plugins`; they are imported before names are listed or looked up, so that their entries stand in `--help`.
"""

from __future__ import annotations

import importlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib.metadata import entry_points
from numbers import Real
from typing import Any, Generic, NamedTuple, TypeVar, cast, get_type_hints

from deltah.errors import ConfigError, InvalidValueError

T = TypeVar("T")
Defined = TypeVar("Defined")
Choice = TypeVar("Choice", bound=StrEnum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(Generic[T]):
    """One thing of a registry."""

    name: str
    """As users write it."""
    value: T
    title: str
    """As tables and pages write it."""
    unit: str = ""
    """Empty for a number without one."""
    meaning: str
    """One line, without a full stop."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What else the definition states about itself; each kind documents its own."""

    @property
    def with_unit(self) -> str:
        """Title and unit: "ΔH, nats"."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


OWN_MODULES: dict[str, None] = {}
"""Modules outside this package that registered something: a worker process imports them to know the same names."""


class Registry(Mapping[str, Entry[T]]):
    """Entries of one kind by name, in the order they were registered."""

    def __init__(self, kind: str) -> None:
        """Start an empty registry; `kind` is what messages call an entry ("signal")."""
        self.kind = kind
        self._entries: dict[str, Entry[T]] = {}

    def register(
        self, name: str, *, title: str | None = None, unit: str = "", meaning: str | None = None, **options: Any
    ) -> Callable[[Defined], Defined]:
        """Decorator that registers what it decorates and returns it unchanged.

        Args:
            name: As users write it.
            title: As tables write it; by default the name.
            unit: Empty for a number without one.
            meaning: One line; by default the first line of the docstring.
            **options: What this kind of thing states about itself.

        Raises:
            InvalidValueError: if the name is taken by something else.
        """

        def decorate(value: Defined) -> Defined:
            taken = self._entries.get(name)
            if taken is not None and not _same_definition(taken.value, value):
                raise InvalidValueError(f"there is a {self.kind} named {name!r} already; choose another name")
            module = str(getattr(value, "__module__", "__main__"))
            if module != "__main__" and module.partition(".")[0] != __name__.partition(".")[0]:
                OWN_MODULES[module] = None
            self._entries[name] = Entry(
                name=name,
                value=cast(T, value),
                title=title or name,
                unit=unit,
                meaning=meaning or _first_line(value),
                options=options,
            )
            return value

        return decorate

    def resolve(self, name: str) -> Entry[T]:
        """Entry of a name that a user wrote: one of the registry, or `package.module:attribute`.

        Raises:
            InvalidValueError: if there is none; names the choices.
            ConfigError: if the module cannot be imported or has no such attribute.
        """
        if name in self._entries or name in self:
            return self._entries[name]
        module_name, colon, attribute = name.partition(":")
        if not colon:
            raise InvalidValueError(
                f"unknown {self.kind} {name!r}; choose one of: {', '.join(self)}; or name one of your own as "
                "package.module:function"
            )
        try:
            module = importlib.import_module(module_name)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"{self.kind} {name!r}: cannot import {module_name!r} ({error}); install it, or put its folder on "
                "PYTHONPATH"
            ) from error
        value = getattr(module, attribute, None)
        if not callable(value):
            functions = sorted(n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_"))
            raise ConfigError(
                f"{self.kind} {name!r}: {module_name!r} has no function {attribute!r}; it has "
                f"{', '.join(functions) or 'none'}"
            )
        registered = next((e for e in self._entries.values() if _same_definition(e.value, value)), None)
        return registered or Entry(name=name, value=cast(T, value), title=attribute, meaning=_first_line(value))

    def __getitem__(self, name: str) -> Entry[T]:
        if name not in self._entries:
            load_plugins()
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(self._entries)

    def __len__(self) -> int:
        load_plugins()
        return len(self._entries)


@cache
def load_plugins() -> None:
    """Import the modules that installed packages name, once; one that fails costs a warning and its own entries."""
    for point in entry_points(group="deltah.plugins"):
        try:
            point.load()
        except Exception as error:
            package = point.dist.name if point.dist is not None else "unknown"
            warnings.warn(
                f"the plugin {point.name!r} ({point.value}) of package {package!r} cannot be imported: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )


def _first_line(value: object) -> str:
    """First line of a docstring, without its full stop; empty without one."""
    return (inspect.getdoc(value) or "").partition("\n")[0].rstrip(".")


def _same_definition(a: object, b: object) -> bool:
    """Whether two objects come from one definition, as after a module was loaded again."""
    names = [(getattr(x, "__module__", None), getattr(x, "__qualname__", None)) for x in (a, b)]
    return a is b or (None not in names[0] and names[0] == names[1])


def choice(kind: type[Choice], value: object, what: str) -> Choice:
    """Member of a closed set from its text; an error calls it `what` and lists the choices."""
    try:
        return kind(str(value))
    except ValueError:
        names = ", ".join(member.value for member in kind)
        raise InvalidValueError(f"unknown {what} {value!r}; choose one of: {names}") from None


def check_number(what: str, value: object, low: float, high: float = math.inf, *, unit: str = "number") -> None:
    """Raise an InvalidValueError for what is not a finite number in [low, high]."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if math.isfinite(number) and low <= number <= high:
        return
    extent = f"{low:g} or more" if math.isinf(high) else f"from {low:g} to {high:g}"
    raise InvalidValueError(f"{what} is {value!r}; expected a {unit}, {extent}")


class Range(NamedTuple):
    """Bounds of a numeric option, both included: `alpha: Annotated[float, Range(0.0, 100.0)] = 0.5`."""

    low: float
    high: float = math.inf


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Options of a function with their defaults: its parameters that have one."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def check_options(function: Callable[..., Any], given: Mapping[str, Any], what: str) -> None:
    """Refuse options that a function (`what`, "reward 'dense'") does not take or whose values are out of `Range`."""
    if not given:
        return
    known = options_of(function)
    hints = get_type_hints(function, include_extras=True)
    for name, value in given.items():
        if name not in known:
            raise InvalidValueError(f"the {what} has no option {name!r}; it has: {', '.join(known) or 'none'}")
        bounds = next((m for m in getattr(hints.get(name), "__metadata__", ()) if isinstance(m, Range)), None)
        if bounds is not None:
            check_number(name, value, *bounds)
        elif hints.get(name) is bool and not isinstance(value, bool):
            raise InvalidValueError(f"{name} is {value!r}; expected true or false")

"""Checks of the options that a user sets: one wording for a wrong choice and for a number out of range."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from enum import StrEnum
from numbers import Real
from typing import Any, NamedTuple, TypeVar, get_type_hints

from deltah.errors import InvalidValueError

Choice = TypeVar("Choice", bound=StrEnum)


def choice(kind: type[Choice], value: object, what: str) -> Choice:
    """Member of a closed set.

    Args:
        kind: The set.
        value: A member or its text.
        what: What is chosen, in the singular, for the message.

    Raises:
        InvalidValueError: naming the choices, for anything else.
    """
    if type(value) is kind:
        return value
    try:
        return kind(str(value))
    except ValueError:
        names = ", ".join(member.value for member in kind)
        raise InvalidValueError(f"unknown {what} {value!r}; choose one of: {names}") from None


def check_number(what: str, value: object, low: float, high: float = math.inf, *, unit: str = "number") -> None:
    """Refuse what is not a finite number in [low, high].

    Raises:
        InvalidValueError: naming the range.
    """
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
    """Names and defaults of the keyword arguments that a function calls its options: those that have a default."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def check_options(function: Callable[..., Any], given: Mapping[str, Any], what: str) -> None:
    """Refuse options that a function does not take, and values outside the `Range` of their annotation.

    Args:
        function: Whose options they are.
        given: Values by name.
        what: Whose options they are, for the message: "reward 'dense'".

    Raises:
        InvalidValueError: naming the options that exist, or the range.
    """
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

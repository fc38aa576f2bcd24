"""Checks of the options that a user sets: one wording for a wrong choice and for a number out of range."""

from __future__ import annotations

import math
from enum import StrEnum
from numbers import Real
from typing import TypeVar

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

"""attrs validators for options and settings: each names what it refuses, with its value.

    width: int = attrs.field(default=5, validator=kvpolicy.options.odd_count)

They raise InvalidValueError.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from attrs import Attribute

from kvpolicy.budget import LARGEST
from kvpolicy.errors import InvalidValueError, shown, suggest

WIDEST = 2**12 - 1
"""Positions that a pooling window may span: it takes memory for as many beyond both edges."""


def natural(instance: object, option: Attribute[Any], value: Any) -> None:
    """Refuse all but an int of at least 0."""
    _check_int(option, value, least=0)


def count(instance: object, option: Attribute[Any], value: Any) -> None:
    """Refuse all but an int of at least 1."""
    _check_int(option, value, least=1)


def boolean(instance: object, option: Attribute[Any], value: Any) -> None:
    """Refuse all but True and False."""
    if not isinstance(value, bool):
        raise InvalidValueError(f"{option.name!r} must be True or False, not {shown(value)}")


def natural_or_share(instance: object, option: Attribute[Any], value: Any) -> None:
    """Refuse all but an int of at least 0, or a float share in [0, 1)."""
    if not isinstance(value, float):
        natural(instance, option, value)
    elif not 0 <= value < 1:
        raise InvalidValueError(
            f"a float {option.name!r} is a share of the budget, from 0 to below 1, but is {value}"
        )


def share(instance: object, option: Attribute[Any], value: Any) -> None:
    """Refuse all but a number in [0, 1]."""
    if not isinstance(value, float):
        raise InvalidValueError(f"{option.name!r} must be a number, not {shown(value)}")
    if not 0 <= value <= 1:
        raise InvalidValueError(f"{option.name!r} must be in [0, 1], not {value}")


def odd_count(instance: object, option: Attribute[Any], value: Any) -> None:
    """Refuse all but an odd int of at least 1 and at most `WIDEST`."""
    count(instance, option, value)
    if value > WIDEST:
        raise InvalidValueError(f"{option.name!r} must be at most {WIDEST}, not {value}")
    if value % 2 == 0:
        raise InvalidValueError(
            f"{option.name!r} must be odd, so that a position has as many neighbours on its left "
            f"as on its right, not {value}"
        )


def as_float(value: Any) -> Any:
    """Return an int as a float, and leave the rest for the validator to see.

    One that is too large for a float is infinite, as it is in JSON.
    """
    if type(value) is not int:
        return value
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def positive(instance: object, option: Attribute[Any], value: Any) -> None:
    """Refuse all but a finite number above 0."""
    if not isinstance(value, float):
        raise InvalidValueError(f"{option.name!r} must be a number, not {shown(value)}")
    if not 0 < value < math.inf:
        raise InvalidValueError(f"{option.name!r} must be above 0 and finite, not {value}")


def one_of(*choices: str) -> Callable[[Any, Attribute[Any], Any], None]:
    """Return a validator that refuses all but `choices`."""

    def validate(instance: object, option: Attribute[Any], value: Any) -> None:
        if not isinstance(value, str) or value not in choices:
            raise InvalidValueError(
                f"{option.name!r} must be one of {', '.join(map(repr, choices))}, "
                f"not {shown(value)}.{suggest(value, choices)}"
            )

    return validate


def _check_int(option: Attribute[Any], value: Any, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidValueError(f"{option.name!r} must be an int, not {shown(value)}")
    if value < least:
        raise InvalidValueError(f"{option.name!r} must be at least {least}, not {shown(value)}")
    if value > LARGEST:
        raise InvalidValueError(f"{option.name!r} must be at most {LARGEST}, not {shown(value)}")

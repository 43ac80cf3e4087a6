"""Validators for options and settings.

    width: int = attrs.field(default=5, validator=kvpolicy.options.odd_count)
    future: int = attrs.field(default=512, validator=[count, at_most(2**17)])

Each raises InvalidValueError with the option's name and the value.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, TypeAlias

from attrs import Attribute

from kvpolicy.budget import LARGEST
from kvpolicy.errors import InvalidValueError, shown, suggest

Validator: TypeAlias = "Callable[[Any, Attribute[Any], Any], None]"

WIDEST = 2**12 - 1
"""The largest pooling width. Pooling pads a row by about as many positions as its width."""


def natural(instance: object, option: Attribute[Any], value: Any) -> None:
    """Accept an int of at least 0."""
    _check_int(option, value, least=0)


def count(instance: object, option: Attribute[Any], value: Any) -> None:
    """Accept an int of at least 1."""
    _check_int(option, value, least=1)


def odd_count(instance: object, option: Attribute[Any], value: Any) -> None:
    """Accept an odd int from 1 to `WIDEST`."""
    count(instance, option, value)
    if value > WIDEST:
        raise InvalidValueError(f"{option.name!r} must be at most {WIDEST}, not {value}")
    if value % 2 == 0:
        raise InvalidValueError(
            f"{option.name!r} must be odd, so that a position has as many neighbours on its left "
            f"as on its right, not {value}"
        )


def boolean(instance: object, option: Attribute[Any], value: Any) -> None:
    """Accept True and False."""
    if not isinstance(value, bool):
        raise InvalidValueError(f"{option.name!r} must be True or False, not {shown(value)}")


def a_path(instance: object, option: Attribute[Any], value: Any) -> None:
    """Accept the path of a file or folder: a string or an `os.PathLike`, and not an empty one."""
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise InvalidValueError(f"{option.name!r} must be a path, not {shown(value)}.")


def a_text(instance: object, option: Attribute[Any], value: Any) -> None:
    """Accept a string that is not empty."""
    if not isinstance(value, str) or not value:
        raise InvalidValueError(f"{option.name!r} must be a text, not {shown(value)}.")


def positive(instance: object, option: Attribute[Any], value: Any) -> None:
    """Accept a finite float above 0; see `as_float` for ints."""
    _check_float(option, value)
    if not 0 < value < math.inf:
        raise InvalidValueError(f"{option.name!r} must be above 0 and finite, not {value}")


def share(instance: object, option: Attribute[Any], value: Any) -> None:
    """Accept a float from 0 to 1; see `as_float` for ints."""
    _check_float(option, value)
    if not 0 <= value <= 1:
        raise InvalidValueError(f"{option.name!r} must be in [0, 1], not {value}")


def natural_or_share(instance: object, option: Attribute[Any], value: Any) -> None:
    """Accept an int of at least 0, or a float share from 0 to below 1."""
    if not isinstance(value, float):
        natural(instance, option, value)
    elif not 0 <= value < 1:
        raise InvalidValueError(
            f"a float {option.name!r} is a share of the budget. It must be in [0, 1), not {value}"
        )


def at_least(least: float) -> Validator:
    """Return a validator that accepts numbers from `least` on; put one for the type before it.

    >>> import attrs
    >>> Part = attrs.make_class("Part", {"beta": attrs.field(validator=[positive, at_least(1)])})
    >>> Part(beta=0.5)
    Traceback (most recent call last):
    kvpolicy.errors.InvalidValueError: 'beta' must be at least 1, not 0.5
    """

    def validate(instance: object, option: Attribute[Any], value: Any) -> None:
        if not value >= least:
            raise InvalidValueError(f"{option.name!r} must be at least {least}, not {value}")

    return validate


def at_most(most: float) -> Validator:
    """Return a validator that accepts numbers up to `most`; put one for the type before it.

    >>> import attrs
    >>> Part = attrs.make_class("Part", {"tau": attrs.field(validator=[positive, at_most(8)])})
    >>> Part(tau=9.0)
    Traceback (most recent call last):
    kvpolicy.errors.InvalidValueError: 'tau' must be at most 8, not 9.0
    """

    def validate(instance: object, option: Attribute[Any], value: Any) -> None:
        if not value <= most:
            raise InvalidValueError(f"{option.name!r} must be at most {most}, not {value}")

    return validate


def one_of(*choices: str) -> Validator:
    """Return a validator that accepts the strings `choices`."""

    def validate(instance: object, option: Attribute[Any], value: Any) -> None:
        if not isinstance(value, str) or value not in choices:
            raise InvalidValueError(
                f"{option.name!r} must be one of {', '.join(map(repr, choices))}, "
                f"not {shown(value)}.{suggest(value, choices)}"
            )

    return validate


def as_float(value: Any) -> Any:
    """Convert an int to a float, for use as a converter; return other values unchanged.

    An int that no float can hold becomes infinite, which validators refuse.
    """
    if type(value) is not int:
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _check_int(option: Attribute[Any], value: Any, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidValueError(f"{option.name!r} must be an int, not {shown(value)}")
    if value < least:
        raise InvalidValueError(f"{option.name!r} must be at least {least}, not {shown(value)}")
    if value > LARGEST:
        raise InvalidValueError(f"{option.name!r} must be at most {LARGEST}, not {shown(value)}")


def _check_float(option: Attribute[Any], value: Any) -> None:
    if not isinstance(value, float):
        raise InvalidValueError(f"{option.name!r} must be a number, not {shown(value)}")

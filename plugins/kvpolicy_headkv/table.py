"""A table of head importance as an option: numbers, with a row for each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from attrs import Attribute

from kvpolicy.errors import InvalidValueError, shown
from kvpolicy.options import as_float

Table: TypeAlias = tuple[tuple[float, ...], ...]


def as_table(rows: Any) -> Any:
    """Return rows of numbers as tuples of floats. Other values are left for the validator.

    >>> as_table([[1, 2], [3, 4]])
    ((1.0, 2.0), (3.0, 4.0))
    """
    if _is_sequence(rows) and all(_is_sequence(row) for row in rows):
        return tuple(tuple(map(as_float, row)) for row in rows)
    return rows


def importances(instance: object, option: Attribute[Any], rows: Any) -> None:
    """Accept rows of one length, with finite numbers of at least 0, some of them above 0.

    Raises InvalidValueError for anything else.
    """
    wanted = f"{option.name!r} must be a list of rows of numbers, one row for each layer"
    if not (isinstance(rows, tuple) and rows and all(isinstance(row, tuple) for row in rows)):
        raise InvalidValueError(f"{wanted}, not {shown(rows)}")
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1 or lengths[0] == 0:
        raise InvalidValueError(f"{wanted}, all of one length; these rows have lengths {lengths}")
    for layer, row in enumerate(rows):
        for head, value in enumerate(row):
            if not isinstance(value, float) or not 0 <= value < math.inf:
                raise InvalidValueError(
                    f"{wanted}; numbers must be finite and at least 0, but layer {layer} has "
                    f"{shown(value)} for head {head}"
                )
    if not any(map(any, rows)):
        raise InvalidValueError(f"{wanted}; some numbers must be above 0, but all are 0")


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)

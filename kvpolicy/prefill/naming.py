"""From what a user says of the prefill to a pattern: a name, a mapping or an object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import attrs

from kvpolicy.errors import (
    InvalidComponentError,
    InvalidOptionError,
    InvalidValueError,
    UnknownComponentError,
    shown,
    suggest,
)
from kvpolicy.prefill.a_shape import AShape
from kvpolicy.prefill.pattern import PrefillPattern
from kvpolicy.prefill.vertical_slash import VerticalSlash

Prefill: TypeAlias = str | Mapping[str, Any] | PrefillPattern
"""A name, a mapping of `name` and options, or the object itself."""

PATTERNS: Mapping[str, type[AShape] | type[VerticalSlash]] = {
    "a-shape": AShape,
    "vertical-slash": VerticalSlash,
}


def pattern_of(prefill: Prefill) -> PrefillPattern:
    """Return the pattern that is meant.

    >>> pattern_of({"name": "a-shape", "sinks": 4})
    AShape(sinks=4, local=3968, block=128)

    Raises UnknownComponentError, InvalidOptionError, InvalidValueError or InvalidComponentError.
    """
    if isinstance(prefill, str):
        prefill = {"name": prefill}
    if not isinstance(prefill, Mapping):
        return _checked(prefill)
    options = dict(prefill)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise InvalidValueError(
            "prefill must be a name, an object, or a mapping with a 'name' such as "
            f"{{'name': 'a-shape', option: ...}}, not {shown(prefill)}."
        )
    if name not in PATTERNS:
        raise UnknownComponentError(
            f"no prefill pattern named {shown(name)}.{suggest(name, PATTERNS)} "
            f"There are: {', '.join(PATTERNS)}; None reads prompts densely."
        )
    return _built(name, options)


def _built(name: str, options: Mapping[str, Any]) -> PrefillPattern:
    known = attrs.fields_dict(PATTERNS[name])
    for option in options:
        if option not in known:
            raise InvalidOptionError(
                f"prefill pattern {name!r} has no option {shown(option)}."
                f"{suggest(option, known)} It has: {', '.join(known)}."
            )
    try:
        return PATTERNS[name](**options)
    except InvalidValueError as error:
        raise InvalidValueError(f"prefill pattern {name!r}: {error}") from error


def _checked(prefill: Any) -> PrefillPattern:
    if isinstance(prefill, type) or not isinstance(prefill, PrefillPattern):
        raise InvalidComponentError(
            f"prefill must be a name, a mapping or a PrefillPattern (block, dense_up_to and "
            f"choose), not {shown(prefill)}."
        )
    return prefill

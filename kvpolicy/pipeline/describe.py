"""A part as plain data: its name and its options. `compose` builds the part from them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from kvpolicy.errors import InvalidComponentError, shown
from kvpolicy.pipeline.title import Title

_UNPLAIN = object()


def described(title: Title, part: object) -> dict[str, Any]:
    """Return a part's name and options as JSON data. Tuples become lists.

    Raises InvalidComponentError if no installed plugin offers the part by name, or if an option is
    not plain data.
    """
    kind, name = title.kind, title.name
    if name is None or not attrs.has(type(part)):
        raise InvalidComponentError(
            f"{kind} {shown(part)} cannot be described, because no installed plugin offers it by "
            "name as an attrs class. Register it under the entry-point group 'kvpolicy'."
        )
    fields = [field for field in _fields(part) if field.init]
    options = {str(field.alias): _plain(getattr(part, field.name)) for field in fields}
    unplain = [option for option, value in options.items() if value is _UNPLAIN]
    if unplain:
        raise InvalidComponentError(
            f"{kind} {name!r} cannot be described: its option {unplain[0]!r} is not plain data. "
            "Plain data are numbers, strings, and lists and mappings of them."
        )
    return {"name": name, **options}


def _fields(part: Any) -> tuple[attrs.Attribute[Any], ...]:
    fields: tuple[attrs.Attribute[Any], ...] = attrs.fields(type(part))
    return fields


def _plain(value: Any) -> Any:
    """Return a value as JSON data, or `_UNPLAIN` if JSON cannot hold it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        items = [_plain(each) for each in value]
        return _UNPLAIN if _UNPLAIN in items else items
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        entries = {name: _plain(each) for name, each in value.items()}
        return _UNPLAIN if _UNPLAIN in entries.values() else entries
    return _UNPLAIN

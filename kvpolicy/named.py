"""Builds a part from what a user gives: a name, a mapping with a name, or the object itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

from torch import Tensor

from kvpolicy.discovery.registry import component_of, find
from kvpolicy.errors import InvalidComponentError, InvalidOptionError, InvalidValueError, shown
from kvpolicy.kinds import KINDS, Kind
from kvpolicy.pipeline.title import Title

T = TypeVar("T")
Part: TypeAlias = str | Mapping[str, Any] | T
"""A name, a mapping of `name` and options, or the object itself."""


class Named(NamedTuple):
    """A part, and the title by which messages call it."""

    part: Any
    title: Title


def resolved(kind: str, given: Part[Any]) -> Named:
    """Return the part that a user means, and its title.

    >>> part, title = resolved("smoother", "mean")
    >>> print(part, "is", title)
    MeanSmoother() is smoother 'mean' of plugin 'core' (kvpolicy 0.1.0)

    Raises UnknownComponentError, InvalidOptionError, InvalidValueError, InvalidComponentError, or
    ComponentFailedError if the part cannot be built.
    """
    if isinstance(given, str):
        given = {"name": given}
    if isinstance(given, Mapping):
        return _built(KINDS[kind], given)
    part = _checked(KINDS[kind], given)
    return Named(part, title_by_class(kind, part))


def title_by_class(kind: str, part: object) -> Title:
    """Return the title of an object, by the plugin that offers its class if one does."""
    component = component_of(kind, part)
    if component is None:
        return Title(kind=KINDS[kind].title, type=type(part))
    return component.title_of(part)


def _built(kind: Kind, given: Mapping[Any, Any]) -> Named:
    options = dict(given)
    for option in options:
        if not isinstance(option, str):
            raise InvalidOptionError(
                f"options of {kind.article} {kind.title} have names, strings, not {shown(option)}."
            )
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise InvalidValueError(
            f"{kind.title} must be a name, an object, or a mapping with a 'name' such as "
            f"{{'name': ..., option: ...}}, not {shown(given)}."
        )
    component = find(kind.name, name)
    part = component.build(**options)
    return Named(part, component.title_of(part))


def _checked(kind: Kind, part: Any) -> Any:
    # A tensor has a `select` of its own, but it is not a selector.
    if isinstance(part, type | Tensor) or not isinstance(part, kind.interface):
        raise InvalidComponentError(
            f"{kind.title} must be a name, a mapping or a {kind.interface.__name__} (an object "
            f"with {', '.join(kind.verbs)}), not {shown(part)}."
        )
    return part

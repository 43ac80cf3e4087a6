"""Finds plugins through entry points, and their components by kind and name.

Plugins are looked up at first use, and the result is kept. Plugins named in the environment
variable KVPOLICY_BLOCK_PLUGINS (entry-point names, separated by commas) are never imported. If the
import of a plugin takes long, a warning of the logger "kvpolicy" names the plugin.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import attrs

from kvpolicy.discovery.component import Component
from kvpolicy.discovery.name import check_name, escaped
from kvpolicy.discovery.plugin import components_of
from kvpolicy.discovery.slow_import import patient_with
from kvpolicy.errors import (
    BrokenPluginWarning,
    DuplicateComponentError,
    InvalidValueError,
    UnknownComponentError,
    shown,
    suggest,
    told,
)
from kvpolicy.kinds import KINDS

GROUP = "kvpolicy"
BLOCK = "KVPOLICY_BLOCK_PLUGINS"


@attrs.frozen(kw_only=True)
class BrokenPlugin:
    """A plugin that is installed but cannot be used, and the reason."""

    name: str
    distribution: str
    version: str
    reason: str

    def __str__(self) -> str:
        return f"{escaped(self.name)} ({self.distribution} {self.version}): {self.reason}"


def installed(kind: str | None = None) -> tuple[Component, ...]:
    """List what the installed plugins offer, sorted by kind and name.

    >>> [part.name for part in installed("selector")]
    ['topk']
    """
    _check_kind(kind)
    return tuple(part for part in _announced().components if kind in (None, part.kind))


def broken() -> tuple[BrokenPlugin, ...]:
    """List the plugins that are installed but cannot be used."""
    return _announced().broken


def find(kind: str, name: str) -> Component:
    """Return the component of that kind and name.

    Raises InvalidValueError if `name` is no string, UnknownComponentError with the names that are
    installed if there is none, and DuplicateComponentError if two plugins offer it.
    """
    if not isinstance(name, str):
        raise InvalidValueError(
            f"the name of {KINDS[kind].article} {KINDS[kind].title} must be a string, but is "
            f"{shown(name)}."
        )
    matches = [part for part in installed(kind) if part.name == name]
    if not matches:
        raise _unknown(kind, name)
    if len(matches) > 1:
        first, second = matches[:2]
        raise DuplicateComponentError(
            f"{first.title} is offered twice: by {first.source} and by {second.source}. "
            "Uninstall or rename one."
        )
    return matches[0]


def component_of(kind: str, part: object) -> Component | None:
    """Return the component whose class is that of `part`; None if no plugin offers that class.

    >>> print(component_of("smoother", find("smoother", "mean").build()))
    smoother 'mean' of plugin 'core' (kvpolicy 0.1.0)
    """
    of_kind = (each for each in _discovered().components if each.kind == kind)
    return next((each for each in of_kind if each.offer is type(part)), None)


def refresh() -> None:
    """Forget the plugins that were found, so that the next use looks them up again."""
    _discovered.cache_clear()
    _announced.cache_clear()


@attrs.frozen
class _Discovery:
    components: tuple[Component, ...]
    broken: tuple[BrokenPlugin, ...]


@cache
def _announced() -> _Discovery:
    found = _discovered()
    for plugin in found.broken:
        warnings.warn(f"skipped kvpolicy plugin {plugin}", BrokenPluginWarning, stacklevel=4)
    return found


@cache
def _discovered() -> _Discovery:
    components: list[Component] = []
    broken: list[BrokenPlugin] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        if entry.name in _blocked():
            continue
        origin = _origin(entry)
        try:
            check_name(entry.name, "its entry point")
            with patient_with(
                "{name!r} ({distribution} {version})".format(**origin),
                f"To skip it, set {BLOCK}={entry.name} and start again",
            ):
                components += components_of(entry.load(), **origin)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a plugin that exits must not end the program
            broken.append(BrokenPlugin(**origin, reason=told(error)))
    order = list(KINDS)
    components.sort(key=lambda part: (order.index(part.kind), part.name))
    return _Discovery(tuple(components), tuple(broken))


def _origin(entry: EntryPoint) -> dict[str, str]:
    distribution, version = (entry.dist.name, entry.dist.version) if entry.dist else ("?", "?")
    return {"name": entry.name, "distribution": distribution, "version": version}


def _blocked() -> frozenset[str]:
    return frozenset(name.strip() for name in os.environ.get(BLOCK, "").split(",")) - {""}


def _check_kind(kind: Any) -> None:
    if kind is None or (isinstance(kind, str) and kind in KINDS):
        return
    raise UnknownComponentError(
        f"there is no kind of component called {shown(kind)}.{suggest(kind, KINDS)} "
        f"Kinds: {', '.join(KINDS)}."
    )


def _unknown(kind: str, name: str) -> UnknownComponentError:
    names = [part.name for part in installed(kind)]
    message = (
        f"no {KINDS[kind].title} named {escaped(name)}.{suggest(name, names)} "
        f"Installed: {', '.join(names) or 'none'}."
    )
    if elsewhere := [part.kind for part in installed() if part.name == name]:
        other = KINDS[elsewhere[0]]
        message += f" There is {other.article} {other.title} of that name."
    error = UnknownComponentError(message)
    for plugin in broken():
        error.add_note(f"This plugin may offer it, but could not be used: {plugin}")
    if blocked := _blocked():
        error.add_note(f"{BLOCK} blocks these plugins: {', '.join(sorted(blocked))}")
    return error

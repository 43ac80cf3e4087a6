"""Reads what one plugin offers through its hooks, and says why a faulty plugin cannot be used."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping
from typing import Any

import pluggy

import kvpolicy.hookspecs
from kvpolicy.discovery.component import Component
from kvpolicy.discovery.name import check_name
from kvpolicy.errors import InvalidComponentError, shown, suggest, told
from kvpolicy.kinds import KINDS, PARTS, SETTINGS

HOOKS = {kind.name: kind.hook for kind in KINDS.values()}
_RECIPE_ARGUMENTS = (*PARTS, *SETTINGS)


def components_of(
    plugin: object, *, name: str, distribution: str, version: str
) -> tuple[Component, ...]:
    """Return every component that `plugin` offers.

    Raises InvalidComponentError, or what a hook raises, if one component cannot be used. Then no
    component of the plugin is used. The module kvpolicy.discovery.name says which names are
    allowed.
    """
    # Each plugin has a manager of its own, so that a faulty plugin affects no other.
    manager = pluggy.PluginManager("kvpolicy")
    manager.add_hookspecs(kvpolicy.hookspecs)
    manager.register(plugin, name)
    _check_hooks(manager, plugin)
    return tuple(
        Component(
            kind=kind,
            name=part,
            plugin=name,
            distribution=distribution,
            version=version,
            offer=offer,
        )
        for kind, hook in HOOKS.items()
        for implementation in getattr(manager.hook, hook).get_hookimpls()
        for part, offer in _checked(kind, hook, implementation.function()).items()
    )


def _check_hooks(manager: pluggy.PluginManager, plugin: object) -> None:
    callers = manager.get_hookcallers(plugin) or []
    if not callers:
        raise InvalidComponentError(
            "it implements no hook. Mark a function such as kvpolicy_scorers with "
            "kvpolicy.hookimpl."
        )
    for caller in callers:
        if not caller.has_spec():
            raise InvalidComponentError(
                f"there is no hook {caller.name!r}.{suggest(caller.name, HOOKS.values())} "
                f"Hooks: {', '.join(HOOKS.values())}."
            )


def _checked(kind: str, hook: str, offers: Any) -> Mapping[str, Any]:
    if not isinstance(offers, Mapping):
        raise InvalidComponentError(
            f"{hook} returned a {type(offers).__name__}; it must return a mapping from names to "
            "parts."
        )
    for name, offer in offers.items():
        check_name(name, hook)
        fault = _recipe_fault(offer) if kind == "recipe" else _factory_fault(offer)
        if fault:
            raise InvalidComponentError(f"{kind} {name!r} {fault}.")
    return offers


def _factory_fault(offer: Any) -> str | None:
    if not callable(offer):
        return f"is {shown(offer)}; it must be a class or a function that builds one"
    parameters = inspect.signature(offer).parameters.values()
    nameless = [each.name for each in parameters if each.kind == each.POSITIONAL_ONLY]
    if nameless:
        return f"must take its arguments by keyword, but takes {', '.join(nameless)} by position"
    return None


def _recipe_fault(offer: Any) -> str | None:
    if not isinstance(offer, Mapping):
        return f"is {shown(offer)}; it must be a mapping of the arguments of compose"
    for argument in offer:
        if argument not in _RECIPE_ARGUMENTS:
            return (
                f"sets {shown(argument)}, which compose does not take."
                f"{suggest(argument, _RECIPE_ARGUMENTS)} "
                f"It takes: {', '.join(_RECIPE_ARGUMENTS)}"
            )
    if "scorer" not in offer:
        return "names no scorer"
    try:
        json.dumps(copy.deepcopy(dict(offer)), default=shown)
    except Exception as error:  # noqa: BLE001 - a faulty recipe may raise anything here
        return f"cannot be copied and printed ({told(error)}); it must be plain data"
    return None

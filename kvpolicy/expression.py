"""A policy as the Python expression that builds it: the shortest call of `recipe` or `compose`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from kvpolicy.arguments import policy_fields
from kvpolicy.discovery.registry import component_of, find
from kvpolicy.errors import KvpolicyError, shown
from kvpolicy.kinds import PARTS, SETTINGS
from kvpolicy.pipeline.pipeline import Pipeline

_MISSING = object()
_HIDDEN: Mapping[str, Any] = {
    "sinks": 0,
    "every": None,
    "layer_group": None,
    "per_turn": False,
    "slot_positions": False,
    "group": "mean",
}
"""What `compose` takes if a setting is left out."""


def expression(policy: Pipeline, recipe: str | None) -> str:
    """Return the call that builds a policy. What it would take anyway is left out.

    `recipe` is the recipe that the policy was made of; its name stands first if it still exists.
    """
    base = None if recipe is None else _arguments_of(recipe)
    if base is None:
        arguments = _parts(policy) | _settings(policy, _HIDDEN)
        return f"kvpolicy.compose({_written(arguments)})"
    fields = policy_fields(base)
    changes = _changed_parts(policy, fields) | _settings(policy, {**_HIDDEN, **base})
    return f"kvpolicy.recipe({', '.join(filter(None, [repr(recipe), _written(changes)]))})"


def _arguments_of(recipe: str) -> Mapping[str, Any] | None:
    try:
        arguments: Mapping[str, Any] = find("recipe", recipe).build()
        policy_fields(arguments)
    except KvpolicyError:  # its plugin is gone, or changed
        return None
    return arguments


def _written(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={shown(value)}" for name, value in arguments.items())


_IMPLIED = ("recent", "group_order")
"""Settings for which None means what follows from others."""


def _settings(policy: Pipeline, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the budget, and the settings that differ from what is known."""
    window = policy.scorer.window
    implied = {"recent": window if type(window) is int else 0} | {
        name: value for name, value in known.items() if value is not None or name not in _IMPLIED
    }
    if "group_order" not in implied:
        implied["group_order"] = "before" if policy.group == "max" else "after"
    return {
        name: getattr(policy, name)
        for name in SETTINGS
        if name == "budget" or getattr(policy, name) != implied.get(name, _MISSING)
    }


def _parts(policy: Pipeline) -> dict[str, Any]:
    """Return the parts that are not those of `compose`, as names, mappings or objects."""
    plain = policy_fields({"scorer": policy.scorer})
    return {
        kind: _given(kind, policy.parts[kind])
        for kind in PARTS
        if kind == "scorer" or policy.parts[kind] != plain[kind]
    }


def _changed_parts(policy: Pipeline, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts that differ from a recipe's; of the same class, their changed options."""
    changes: dict[str, Any] = {}
    for kind in PARTS:
        part, before = policy.parts[kind], fields[kind]
        if part == before:
            continue
        same = type(part) is type(before) and attrs.has(type(part))
        changes[kind] = _differences(part, before) if same else _given(kind, part)
    return changes


def _given(kind: str, part: Any) -> Any:
    """Return a part as a name, as a mapping with the options that are no defaults, or as it is."""
    component = component_of(kind, part)
    if component is None or not attrs.has(type(part)):
        return part
    try:
        changed = _differences(part, component.build())
    except KvpolicyError:  # it has options without a default
        changed = {str(each.alias): getattr(part, each.name) for each in _fields(part)}
    return {"name": component.name, **changed} if changed else component.name


def _differences(part: Any, before: Any) -> dict[str, Any]:
    values = {each.alias: (getattr(part, each.name), each.name) for each in _fields(part)}
    return {
        str(alias): value
        for alias, (value, name) in values.items()
        if value is not getattr(before, name) and value != getattr(before, name)
    }


def _fields(part: Any) -> list[attrs.Attribute[Any]]:
    return [field for field in attrs.fields(type(part)) if field.init]

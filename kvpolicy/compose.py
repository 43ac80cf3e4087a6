"""From names and options to a policy, and back to plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Never, TypeAlias, TypeVar

import attrs
from torch import Tensor

from kvpolicy.budget import Budget
from kvpolicy.discovery.component import INTERFACES
from kvpolicy.discovery.registry import find, name_of
from kvpolicy.errors import (
    InvalidComponentError,
    InvalidOptionError,
    InvalidValueError,
    shown,
    suggest,
)
from kvpolicy.policy import Group, Policy
from kvpolicy.stages.allocation import Allocator
from kvpolicy.stages.compaction import Compactor
from kvpolicy.stages.scoring import Scorer
from kvpolicy.stages.selection import Selector
from kvpolicy.stages.smoothing import Smoother

T = TypeVar("T")
Part: TypeAlias = str | Mapping[str, Any] | T
"""A name, a mapping of `name` and options, or the object itself."""

PARTS = ("scorer", "smoother", "allocator", "selector", "compactor")
SETTINGS = ("budget", "group", "sinks", "recent", "every", "slot_positions")


def compose(
    *,
    scorer: Part[Scorer],
    smoother: Part[Smoother] = "mean",
    allocator: Part[Allocator] = "uniform",
    selector: Part[Selector] = "topk",
    compactor: Part[Compactor] = "gather",
    budget: Budget = 1024,
    group: Group = "mean",
    sinks: int = 0,
    recent: int | float | None = None,
    every: int | None = None,
    slot_positions: bool = False,
    **unknown: Never,
) -> Policy:
    """Build a policy from its parts; see `Policy` for the settings.

    `recent` defaults to the scorer's window, whose queries were the judges.
    Raises UnknownComponentError, InvalidOptionError or InvalidValueError.

    >>> policy = compose(scorer="restkv", smoother={"name": "spatiotemporal", "alpha": 0.5})
    >>> policy.smoother.alpha, policy.recent
    (0.5, 32)
    """
    _checked(unknown, "a policy")
    given = {
        "scorer": scorer,
        "smoother": smoother,
        "allocator": allocator,
        "selector": selector,
        "compactor": compactor,
    }
    parts: dict[str, Any] = {kind: _resolve(kind, part) for kind, part in given.items()}
    names = {kind: name for kind, part in given.items() if (name := _named(part)) is not None}
    if recent is None:
        recent = _window(parts["scorer"])
    return Policy(
        **parts,
        budget=budget,
        group=group,
        sinks=sinks,
        recent=recent,
        every=every,
        slot_positions=slot_positions,
        names=names,
    )


def recipe(name: str, /, **changes: Any) -> Policy:
    """Build the method of that name, with some arguments of `compose` changed.

    >>> recipe("restkv", budget=128) == compose(
    ...     scorer="restkv", smoother="spatiotemporal", budget=128)
    True
    """
    arguments = find("recipe", name).build()
    return compose(**arguments | _checked(changes, f"recipe {name!r}"))


def to_dict(policy: Policy) -> dict[str, Any]:
    """Describe a policy as the arguments of `compose`, every option spelt out.

    >>> to_dict(compose(scorer="snapkv", budget=0.5))["scorer"]
    {'name': 'snapkv', 'window': 32}
    """
    parts = {kind: _described(policy, kind) for kind in PARTS}
    return parts | {setting: getattr(policy, setting) for setting in SETTINGS}


def from_dict(data: Mapping[str, Any]) -> Policy:
    """Build the policy that `to_dict` described."""
    if not isinstance(data, Mapping):
        raise InvalidValueError(
            f"a policy is described by a mapping of {', '.join((*PARTS, *SETTINGS))}, "
            f"not by {shown(data)}."
        )
    arguments = _checked(data, "a policy")
    if "scorer" not in arguments:
        raise InvalidValueError(f"a policy needs a 'scorer'; got {', '.join(arguments) or 'none'}.")
    return compose(**arguments)


def _checked(arguments: Mapping[str, Any], owner: str) -> dict[str, Any]:
    choices = (*PARTS, *SETTINGS)
    for name in arguments:
        if not isinstance(name, str) or name not in choices:
            raise InvalidOptionError(
                f"{owner} has no setting {shown(name)}.{suggest(name, choices)} "
                f"It has: {', '.join(choices)}."
            )
    return dict(arguments)


def _named(part: object) -> str | None:
    if isinstance(part, str):
        return part
    name = part.get("name") if isinstance(part, Mapping) else None
    return name if isinstance(name, str) else None


def _resolve(kind: str, part: Any) -> Any:
    if isinstance(part, str):
        part = {"name": part}
    if not isinstance(part, Mapping):
        return _checked_object(kind, part)
    options = dict(part)
    for option in options:
        if not isinstance(option, str):
            raise InvalidOptionError(
                f"options of a {kind} have names, strings, not {shown(option)}."
            )
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise InvalidValueError(
            f"{kind} must be a name, an object, or a mapping with a 'name' such as "
            f"{{'name': ..., option: ...}}, not {shown(part)}."
        )
    return find(kind, name).build(**options)


def _checked_object(kind: str, part: Any) -> Any:
    # A tensor has a `select` of its own, which makes no selector of it.
    if isinstance(part, type | Tensor) or not isinstance(part, INTERFACES[kind]):
        raise InvalidComponentError(
            f"{kind} must be a name, a mapping or a {INTERFACES[kind].__name__}, not {shown(part)}."
        )
    return part


def _described(policy: Policy, kind: str) -> dict[str, Any]:
    part = getattr(policy, kind)
    name = name_of(kind, part, policy.names.get(kind))
    if name is None or not attrs.has(type(part)):
        raise InvalidComponentError(
            f"{kind} {shown(part)} cannot be described: only attrs classes that an installed "
            "plugin offers by name can. Register it under the entry-point group 'kvpolicy'."
        )
    fields = [field for field in attrs.fields(type(part)) if field.init]
    options = {field.alias: _plain(getattr(part, field.name)) for field in fields}
    unplain = [option for option, value in options.items() if value is _UNPLAIN]
    if unplain:
        raise InvalidComponentError(
            f"{kind} {name!r} cannot be described: its option {unplain[0]!r} is no plain data "
            "(numbers, strings, lists and mappings of them)."
        )
    return {"name": name, **options}


_UNPLAIN = object()


def _plain(value: Any) -> Any:
    """Return a value as JSON has it, tuples as lists; `_UNPLAIN` for what JSON has not."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        items = [_plain(each) for each in value]
        return _UNPLAIN if _UNPLAIN in items else items
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        entries = {name: _plain(each) for name, each in value.items()}
        return _UNPLAIN if _UNPLAIN in entries.values() else entries
    return _UNPLAIN


def _window(scorer: Scorer) -> int:
    try:
        window = scorer.window
    except Exception:  # noqa: BLE001 - the policy asks as well, and names the scorer
        return 0
    return window if type(window) is int else 0

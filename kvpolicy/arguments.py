"""The arguments of `compose`, as a mapping: their names checked, their parts built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvpolicy.discovery.registry import find
from kvpolicy.errors import InvalidOptionError, InvalidValueError, KvpolicyError, shown, suggest
from kvpolicy.kinds import KINDS, PARTS, SETTINGS
from kvpolicy.named import Named, resolved
from kvpolicy.stages.scoring import Scorer

_DEFAULTS = {"smoother": "mean", "allocator": "uniform", "selector": "topk", "compactor": "gather"}


def policy_fields(data: Any) -> dict[str, Any]:
    """Return the fields of a `Policy` for arguments of `compose`, with every part built.

    Raises what `compose` raises, and InvalidValueError for data that are no such mapping.
    """
    if not isinstance(data, Mapping):
        raise InvalidValueError(
            f"a policy is described by a mapping of {', '.join((*PARTS, *SETTINGS))}, "
            f"not by {shown(data)}."
        )
    given = {"budget": 1024} | _DEFAULTS | checked_names(data, "a policy", data)
    if "scorer" not in given:
        raise InvalidValueError(f"a policy needs a 'scorer'; got {', '.join(data) or 'none'}.")
    named: dict[str, Named] = {kind: resolved(kind, given.pop(kind)) for kind in PARTS}
    parts = {kind: each.part for kind, each in named.items()}
    if given.get("recent") is None:
        given["recent"] = _window(parts["scorer"])
    if given.get("group_order") is None:
        given.pop("group_order", None)
    return parts | given | {"titles": {kind: each.title for kind, each in named.items()}}


def changed(arguments: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `compose` with changes. A mapping without a name changes options only.

    >>> changed({"scorer": "snapkv", "budget": 64}, {"scorer": {"window": 8}})
    {'scorer': {'name': 'snapkv', 'window': 8}, 'budget': 64}
    """
    result = dict(arguments)
    for name, value in changes.items():
        before = {**_DEFAULTS, **arguments}.get(name)
        if isinstance(before, str):
            before = {"name": before}
        options = name in PARTS and isinstance(value, Mapping) and "name" not in value
        result[name] = {**before, **value} if options and isinstance(before, Mapping) else value
    return result


def checked_names(
    arguments: Mapping[str, Any], owner: str, parts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments; raise InvalidOptionError for one that `compose` does not take.

    `parts` are the parts that are given: the message says which of them has such an option.
    """
    choices = (*PARTS, *SETTINGS)
    for name in arguments:
        if not isinstance(name, str) or name not in choices:
            hint = _hint(name, arguments[name], parts, owner) or suggest(name, choices)
            raise InvalidOptionError(
                f"{owner} has no setting {shown(name)}.{hint} It has: {', '.join(choices)}."
            )
    return dict(arguments)


def _hint(name: object, value: object, parts: Mapping[str, Any], owner: str) -> str:
    """Say which part has an option of that name, and how to give it; else nothing."""
    for kind in PARTS:
        given = parts.get(kind, _DEFAULTS.get(kind))
        part = given.get("name") if isinstance(given, Mapping) else given
        try:
            known = find(kind, part).options if isinstance(part, str) else {}
        except KvpolicyError:
            continue  # it is reported where the part is built
        if name in known:
            # A recipe has a part already; `compose` needs its name.
            given = {} if owner.startswith("recipe") else {"name": part}
            given |= {name: value}
            return f" It is an option of {KINDS[kind].title} {part!r}: {kind}={shown(given)}."
    return ""


def _window(scorer: Scorer) -> int:
    try:
        window = scorer.window
    except Exception:  # noqa: BLE001 - the policy asks for the window again, and names the scorer
        return 0
    return window if type(window) is int else 0


def check_static(*, static: Any, capacity: Any, storage: Any) -> None:
    """Raise InvalidValueError for arguments of a static cache that are wrong or go not together."""
    if not isinstance(static, bool):
        raise InvalidValueError(f"'static' must be True or False, not {shown(static)}")
    if not static:
        raise InvalidValueError(
            f"capacity={shown(capacity)} is for static=True only: other caches grow as they need."
        )
    if capacity is not None and (type(capacity) is not int or capacity < 1):
        raise InvalidValueError(
            f"'capacity' must be a number of tokens, an int of at least 1, not {shown(capacity)}"
        )
    if storage is not None:
        raise InvalidValueError(
            f"static=True keeps rows in buffers that stay in place, so it does not go with "
            f"storage={shown(storage)}. Use one of them."
        )

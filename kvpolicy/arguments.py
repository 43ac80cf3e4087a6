"""The arguments of `compose`, as a mapping: their names checked, their parts built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvpolicy.errors import InvalidOptionError, InvalidValueError, shown, suggest
from kvpolicy.kinds import PARTS, SETTINGS
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
    given = {"budget": 1024} | _DEFAULTS | checked_names(data, "a policy")
    if "scorer" not in given:
        raise InvalidValueError(f"a policy needs a 'scorer'; got {', '.join(data) or 'none'}.")
    named: dict[str, Named] = {kind: resolved(kind, given.pop(kind)) for kind in PARTS}
    parts = {kind: each.part for kind, each in named.items()}
    if given.get("recent") is None:
        given["recent"] = _window(parts["scorer"])
    if given.get("group_order") is None:
        given.pop("group_order", None)
    return parts | given | {"titles": {kind: each.title for kind, each in named.items()}}


def checked_names(arguments: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Return the arguments; raise InvalidOptionError for one that `compose` does not take."""
    choices = (*PARTS, *SETTINGS)
    for name in arguments:
        if not isinstance(name, str) or name not in choices:
            raise InvalidOptionError(
                f"{owner} has no setting {shown(name)}.{suggest(name, choices)} "
                f"It has: {', '.join(choices)}."
            )
    return dict(arguments)


def _window(scorer: Scorer) -> int:
    try:
        window = scorer.window
    except Exception:  # noqa: BLE001 - the policy asks for the window again, and names the scorer
        return 0
    return window if type(window) is int else 0

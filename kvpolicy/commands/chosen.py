"""What `kvpolicy generate` evicts by: a recipe or a file, its changes, a pattern and a storage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from kvpolicy.arguments import changed
from kvpolicy.budget import read_budget
from kvpolicy.composition import recipe as build_recipe
from kvpolicy.errors import InvalidOptionError, InvalidValueError, shown
from kvpolicy.kinds import KINDS
from kvpolicy.named import resolved
from kvpolicy.policy import Policy

FULL = "none"
"""In place of a recipe: transformers' full cache."""


@attrs.frozen(kw_only=True)
class Chosen:
    """A policy, or None for the full cache, and the arguments of `policy.cache`."""

    policy: Policy | None
    extras: Mapping[str, Any]


def chosen(
    *,
    recipe: str | None,
    file: str | None,
    budget: str | None,
    changes: Sequence[str],
    prefill: str | None = None,
    storage: str | None = None,
) -> Chosen:
    """Build what the options of the command line describe.

    Raises InvalidValueError or InvalidOptionError for options that are none or do not go together,
    and what `recipe` raises.
    """
    given = read_changes(changes)
    extras = _extras({"prefill_pattern": prefill, "storage": storage}, given)
    if budget is not None:
        given["budget"] = read_budget(budget)
    try:
        policy = _policy(recipe, file, given)
    except InvalidOptionError as error:
        error.add_note("--set takes PART.OPTION=VALUE, such as --set scorer.window=64.")
        raise
    if policy is None and (extras or changes):
        given_without = next((f"{name} {value}" for name, value in extras.items()), "set")
        raise InvalidValueError(
            f"--{given_without} needs a recipe. With --recipe {FULL} transformers "
            "provides the cache and the attention."
        )
    return Chosen(policy=policy, extras=extras)


def read_changes(texts: Sequence[str]) -> dict[str, Any]:
    """Read options of parts, and settings. A value that is no JSON is a text.

    >>> read_changes(["scorer.window=64", "smoother.pooling=max", "sinks=4"])
    {'scorer': {'window': 64}, 'smoother': {'pooling': 'max'}, 'sinks': 4}

    Raises InvalidValueError for a text that is no such change, or that is given twice.
    """
    changes: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        part, dot, option = name.partition(".")
        if not (equals and part and option if dot else equals and part):
            raise InvalidValueError(
                f"--set takes NAME=VALUE, such as scorer.window=64 or sinks=4, not {shown(text)}."
            )
        if part == "budget":
            raise InvalidValueError(f"--set {text} is --budget {value}.")
        within = changes.setdefault(part, {}) if dot else changes
        key = option if dot else part
        if not isinstance(within, dict) or key in within:
            raise InvalidValueError(f"--set gives {name!r} twice. Give it once.")
        within[key] = _value(value)
    return changes


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _policy(recipe: str | None, file: str | None, changes: dict[str, Any]) -> Policy | None:
    from kvpolicy.evaluation.runs.entrant import read_policy

    if (recipe is None) == (file is None):
        raise InvalidValueError(
            "give either --recipe NAME (`kvpolicy list recipe` prints the names; none keeps the "
            "full cache) or --policy FILE.json."
        )
    if file is not None:
        return Policy.from_dict(changed(read_policy(file).to_dict(), changes))
    return None if recipe == FULL else build_recipe(str(recipe), **changes)


def _extras(given: Mapping[str, str | None], changes: dict[str, Any]) -> dict[str, Any]:
    """Take the pattern and the storage with their options out of the changes, and check them."""
    extras: dict[str, Any] = {}
    for kind, name in given.items():
        argument = str(KINDS[kind].argument)
        options = changes.pop(argument, None)
        if name is None and options is None:
            continue
        if name is None or not isinstance(options, Mapping | None):
            raise InvalidValueError(
                f"--set {argument}.OPTION=VALUE needs --{argument} NAME; `kvpolicy list {kind}` "
                "prints the names."
            )
        extras[argument] = {"name": name, **options} if options else name
        resolved(kind, extras[argument])
    return extras

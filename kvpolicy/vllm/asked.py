"""What a user asked for: the policy in vLLM's `additional_config`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from kvpolicy.arguments import changed, checked_names, policy_fields
from kvpolicy.discovery.registry import find
from kvpolicy.errors import InvalidValueError, shown
from kvpolicy.pipeline.pipeline import Pipeline
from kvpolicy.vllm.policies import check_policy

KEY = "kvpolicy"
"""Where in `additional_config` the policy stands."""

UNTESTED = "untested_vllm"
"""The option that allows another version of vLLM."""


@attrs.frozen(kw_only=True)
class Asked:
    """A policy for an engine. `untested` allows a version of vLLM that was not tested."""

    policy: Pipeline
    title: str
    untested: bool = False


def asked_in(additional_config: Any) -> Asked | None:
    """Return what `additional_config` asks for; None if it does not name a policy.

    It is a recipe with changes, or all that `Policy.to_dict()` returns.

    >>> asked_in({"kvpolicy": {"recipe": "snapkv", "budget": 256}}).policy.budget
    256
    >>> asked_in({}) is None
    True

    Raises what `kvpolicy.compose` raises, and InvalidValueError for a policy that a serving engine
    cannot run exactly.
    """
    if not isinstance(additional_config, Mapping) or KEY not in additional_config:
        return None
    data = additional_config[KEY]
    if not isinstance(data, Mapping):
        raise InvalidValueError(
            f"additional_config[{KEY!r}] must be a mapping such as "
            f'{{"recipe": "snapkv", "budget": 1024}}, not {shown(data)}.'
        )
    given = dict(data)
    untested = given.pop(UNTESTED, False)
    if not isinstance(untested, bool):
        raise InvalidValueError(f"{UNTESTED!r} must be true or false, not {shown(untested)}.")
    policy, title = _policy(given)
    check_policy(policy)
    return Asked(policy=policy, title=title, untested=untested)


def _policy(given: dict[str, Any]) -> tuple[Pipeline, str]:
    """Build the policy that was described, and say what to call it."""
    if "recipe" not in given:
        policy = Pipeline(**policy_fields(given))
        return policy, str(policy.titles["scorer"])
    name = given.pop("recipe")
    if not isinstance(name, str):
        raise InvalidValueError(f"'recipe' must be the name of a recipe, not {shown(name)}.")
    arguments = find("recipe", name).build()
    checked_names(given, f"recipe {name!r}", arguments)
    return Pipeline(**policy_fields(changed(arguments, given))), f"recipe {name!r}"

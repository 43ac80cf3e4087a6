"""What every recipe promises: on a layer, as data, and in a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from kvpolicy.compose import compose
from kvpolicy.policy import Policy
from kvpolicy.testing.promises.promise import Draw, promise
from kvpolicy.testing.strategies import observations

Recipe = Mapping[str, Any]


@promise("recipe")
def changes_nothing_below_the_budget(recipe: Recipe, draw: Draw) -> None:
    """A budget that covers the prompt leaves keys and values as they are, bit for bit."""
    policy = _policy(recipe, budget=1.0)
    observation = draw(observations(window=policy.scorer.window))
    budget = max(observation.seen, _room(recipe), 1)
    keys, values = _policy(recipe, budget=budget).evict(observation)
    assert torch.equal(keys, observation.keys)
    assert torch.equal(values, observation.values)


@promise("recipe", examples=1)
def survives_a_trip_through_json(recipe: Recipe, draw: Draw) -> None:
    """`Policy.from_dict(policy.to_dict())` is the same policy, by way of JSON too."""
    policy = compose(**recipe)
    data = policy.to_dict()
    assert Policy.from_dict(data) == policy
    assert Policy.from_dict(json.loads(json.dumps(data))) == policy


def _room(recipe: Recipe) -> int:
    """Return the least budget that holds what the recipe protects."""
    policy = _policy(recipe, budget=1.0)
    room = max(policy.protected, policy.scorer.window or 1)
    while policy.sinks + policy.recent_of(room) > room:
        room += 1
    return room


def _policy(recipe: Recipe, **changes: Any) -> Policy:
    return compose(**dict(recipe) | changes)

"""What every recipe promises as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kvpolicy.composition import compose
from kvpolicy.policy import Policy
from kvpolicy.testing.promises.promise import Draw, promise

Recipe = Mapping[str, Any]


@promise("recipe", examples=1)
def survives_a_trip_through_json(recipe: Recipe, draw: Draw) -> None:
    """`Policy.from_dict(policy.to_dict())` is the same policy, by way of JSON too."""
    policy = compose(**recipe)
    data = policy.to_dict()
    assert Policy.from_dict(data) == policy
    assert Policy.from_dict(json.loads(json.dumps(data))) == policy

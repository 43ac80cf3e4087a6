"""Keep the newest positions: the smallest kvpolicy plugin. Copy this folder to start yours."""

from __future__ import annotations

import attrs
from attrs.validators import ge
from jaxtyping import Float
from torch import Tensor

import kvpolicy
from kvpolicy.observation.fold import Reduce


@attrs.frozen(kw_only=True)
class RecencyScorer:
    """Scores a position by how late it is."""

    window: int = attrs.field(default=1, validator=ge(1))

    def score(self, observation: kvpolicy.Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Return the position of every token in its sequence, for each query head."""
        heads = observation.queries.shape[1] // observation.keys.shape[1]
        return observation.positions.repeat_interleave(heads, dim=1).float()


@kvpolicy.hookimpl
def kvpolicy_scorers():
    """Offer the scorer under its name."""
    return {"recency": RecencyScorer}


@kvpolicy.hookimpl
def kvpolicy_recipes():
    """Offer the whole method: the arguments of `kvpolicy.compose`."""
    return {"recency": {"scorer": "recency", "sinks": 4}}

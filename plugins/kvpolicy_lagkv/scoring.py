"""Score by lag-relative information: how much a row differs from the next partition."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.errors import InvalidValueError
from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.options import as_float, count, natural, positive
from kvpolicy_lagkv.partitions import Partitions, partitions_of

LIMIT = 1e6  # the largest normalized channel, so that its square stays finite


@attrs.frozen(kw_only=True)
class LagScorer:
    """Ranks a position in its partition of `lag` tokens by its difference from the next one.

    z = (x - min) / (max - min)    per channel, over the next partition
    information = softmax(std z) of the keys + value_weight softmax(std z) of the values
    score_i = -(rank of its information in the partition, from 0)

    So every partition keeps an equal share. Of equal ranks, the position in the later partition
    scores higher. The first `sinks` tokens score highest. Next are tokens with no complete
    partition after their own, later tokens higher. Queries are not used.

    Liang et al., https://arxiv.org/abs/2504.04704.

    >>> from kvpolicy import Observation
    >>> states = torch.tensor([[[[0.0, 0.0], [0.0, 9.0], [0.0, 0.0], [1.0, 1.0]]]])
    >>> layer = Observation(queries=torch.ones(1, 1, 1, 2), keys=states, values=states)
    >>> LagScorer(sinks=0, lag=2).score(layer, lambda attention: attention.mean(-2))
    tensor([[[-1.7500, -0.7500,  0.5000,  1.0000]]])
    """

    window: int = attrs.field(default=1, validator=count)
    sinks: int = attrs.field(default=16, validator=natural)
    lag: int = attrs.field(default=128, validator=count)
    value_weight: float = attrs.field(default=1.0, converter=as_float, validator=positive)

    def check_settings(self, settings: Mapping[str, object]) -> None:
        """Raise InvalidValueError if the policy protects another number of sinks."""
        sinks = settings["sinks"]
        if sinks and sinks != self.sinks:
            raise InvalidValueError(
                f"the policy has sinks={sinks}, but scorer 'lagkv' begins its partitions behind "
                f"sinks={self.sinks}. Give both the same number: sinks={sinks}, "
                f'scorer={{"name": "lagkv", "sinks": {sinks}}}.'
            )

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Return the scores of a key/value head for each of its query heads."""
        partitions = partitions_of(observation, sinks=self.sinks, lag=self.lag)
        information = _information(observation.keys.float(), partitions)
        of_values = _information(observation.values.float(), partitions)
        ranks = partitions.ranks(information + self.value_weight * of_values)
        age = 1 - partitions.members.float() / (partitions.last + 1)
        scores = torch.where(partitions.judged, -(ranks + age), _recency(observation))
        scores = scores.masked_fill(observation.positions < self.sinks, 2.0)
        groups = observation.queries.shape[1] // observation.keys.shape[1]
        return scores.repeat_interleave(groups, dim=1)


def _information(
    states: Float[Tensor, "B N S D"], partitions: Partitions
) -> Float[Tensor, "B N S"]:
    """Return the softmax in each partition of the deviation of a row's normalized channels."""
    low, high = partitions.ranges(states)
    # A channel that is constant in the next partition has no scale, so it counts as 0.
    normalised = torch.where(high > low, (states - low) / (high - low), 0.0)
    channels = states.shape[-1]
    spread = normalised.clamp(-LIMIT, LIMIT).std(-1, correction=min(1, channels - 1))
    return partitions.softmax(spread)


def _recency(observation: Observation) -> Float[Tensor, "B N S"]:
    """Return 1 for the last token, 1/2 for the one before it, and so on."""
    return 1.0 / (observation.seen - observation.positions).float()

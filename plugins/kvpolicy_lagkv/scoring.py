"""Score by lag-relative information: how much a row differs from the next partition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.errors import InvalidValueError
from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.options import as_float, count, natural, positive
from kvpolicy_lagkv.partitions import partitions_of
from kvpolicy_lagkv.whole_text import is_whole, ranks_of_whole


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

    position_bias: ClassVar[bool] = True

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
        ranked = self._of_whole if is_whole(observation) else self._of_the_rest
        scores = ranked(observation).masked_fill(observation.positions < self.sinks, 2.0)
        groups = observation.queries.shape[1] // observation.keys.shape[1]
        return scores.repeat_interleave(groups, dim=1)

    def _of_whole(self, observation: Observation) -> Float[Tensor, "B N S"]:
        """Score a text from which nothing has been evicted."""
        ranks = ranks_of_whole(
            observation, sinks=self.sinks, lag=self.lag, value_weight=self.value_weight
        )
        judged = ranks.shape[2]
        members = torch.arange(1, judged + 1, dtype=torch.float32, device=ranks.device)
        age = 1 - members / (judged + 3)
        scores = _recency(observation)
        text = slice(self.sinks, self.sinks + judged * self.lag)
        scores[:, :, text] = -(ranks + age[:, None]).flatten(2)
        return scores

    def _of_the_rest(self, observation: Observation) -> Float[Tensor, "B N S"]:
        """Score what an earlier eviction has left, which differs between heads."""
        partitions = partitions_of(observation, sinks=self.sinks, lag=self.lag)
        information, of_values = (
            partitions.softmax(partitions.deviations(states))
            for states in (observation.keys, observation.values)
        )
        ranks = partitions.ranks(information + self.value_weight * of_values)
        age = 1 - partitions.members.float() / (partitions.last + 1)
        return torch.where(partitions.judged, -(ranks + age), _recency(observation))


def _recency(observation: Observation) -> Float[Tensor, "B N S"]:
    """Return 1 for the last token, 1/2 for the one before it, and so on."""
    return 1.0 / (observation.seen - observation.positions).float()

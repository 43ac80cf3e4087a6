"""Score by accumulated attention: the sum of the attention of all queries so far."""

from __future__ import annotations

import attrs
from jaxtyping import Float, Shaped
from torch import Tensor

from kvpolicy.errors import InvalidValueError
from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.options import boolean, count
from kvpolicy_h2o.accumulation import received


@attrs.frozen(kw_only=True)
class HeavyHitterScorer:
    """Scores a position by the sum of the attention of all queries so far.

    score_i = sum_t a[t, i]    over all queries t of all forwards

    The sum is running state: each forward adds to it, and it is evicted with its position.
    `average` divides it by the number of queries that could attend to the position.
    `value_weighted` multiplies it by ||v_i||_1. With `causal=False` only the last `window` queries
    of a forward are masked causally, and the scorer needs a whole prompt.

    Zhang et al., NeurIPS 2023, https://arxiv.org/abs/2306.14048; `value_weighted`: Guo et al.,
    EMNLP 2024, https://arxiv.org/abs/2406.12335.

    >>> import torch
    >>> from kvpolicy import Observation
    >>> layer = Observation(queries=torch.zeros(1, 1, 2, 1), keys=torch.zeros(1, 1, 2, 1),
    ...                     values=torch.zeros(1, 1, 2, 1))
    >>> HeavyHitterScorer().accumulate(layer)
    tensor([[[1.5000, 0.5000]]])
    """

    window: int = attrs.field(default=1, validator=count)
    causal: bool = attrs.field(default=True, validator=boolean)
    average: bool = attrs.field(default=False, validator=boolean)
    value_weighted: bool = attrs.field(default=False, validator=boolean)

    def __attrs_post_init__(self) -> None:
        """Refuse `average` without causal queries."""
        if self.average and not self.causal:
            raise InvalidValueError(
                "average=True counts causal queries, and causal=False has none. Leave out one of "
                "them"
            )

    @property
    def prefill_only(self) -> bool:
        """Whether the scorer needs a whole prompt: its queries then attend to later positions."""
        return not self.causal

    @property
    def position_bias(self) -> bool:
        """Whether a bias by distance is followed: of causal queries the model makes it."""
        return self.causal

    @property
    def capturable(self) -> bool:
        """Whether only tensors count: an average also counts the tokens seen."""
        return not self.average

    def accumulate(self, observation: Observation) -> Float[Tensor, "B H S"]:
        """Return the sums with the attention of this forward's queries added."""
        new = self._received(observation)
        return new if observation.state is None else observation.state + new

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Return the running sums, averaged or weighted. `reduce` is not used."""
        scores = observation.state
        if scores is None:
            scores = self.accumulate(observation)
        if self.average:
            # Every query since a position was read, its own included, could attend to it.
            scores = scores / _per_query_head(observation.seen - observation.positions, scores)
        if self.value_weighted:
            scores = scores * _per_query_head(observation.values.float().abs().sum(-1), scores)
        return scores

    def _received(self, observation: Observation) -> Float[Tensor, "B H S"]:
        queries = observation.queries
        if self.causal or observation.window <= self.window:
            return received(observation, queries)
        early, late = queries.split([observation.window - self.window, self.window], dim=2)
        return received(observation, early, causal=False) + received(observation, late)


def _per_query_head(
    numbers: Shaped[Tensor, "B N S"], scores: Float[Tensor, "B H S"]
) -> Float[Tensor, "B H S"]:
    """Repeat the numbers of a key/value head for each of its query heads."""
    return numbers.repeat_interleave(scores.shape[1] // numbers.shape[1], dim=1).to(scores)

"""Importance by accumulated attention: how much all queries so far have looked at a position."""

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
    """Scores a position by the attention that it has received from every query so far.

    score_i = sum_t a[t, i]    over all queries t of all forwards

    The sum is running state: it grows with each forward and is evicted with its position. With
    `average` it is divided by the number of queries that could see the position. `value_weighted`
    multiplies it by ||v_i||_1. With `causal=False` only the last `window` queries of a forward are
    kept from seeing what comes after them; that judges whole prompts only.

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
        """Refuse to count causal queries where there are none."""
        if self.average and not self.causal:
            raise InvalidValueError("average=True counts the causal queries: drop causal=False")

    @property
    def prefill_only(self) -> bool:
        """Whether it needs a whole prompt, whose queries see what comes after them."""
        return not self.causal

    def accumulate(self, observation: Observation) -> Float[Tensor, "B H S"]:
        """Add the attention of this forward's queries to what each position has received."""
        new = self._received(observation)
        return new if observation.state is None else observation.state + new

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Return the running sums, averaged or weighted; there is no window left to `reduce`."""
        scores = observation.state
        if scores is None:
            scores = self.accumulate(observation)
        if self.average:
            # Whoever came since, itself included, has seen a position that is still held.
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
    """Repeat what belongs to a key/value head for each of its query heads."""
    return numbers.repeat_interleave(scores.shape[1] // numbers.shape[1], dim=1).to(scores)

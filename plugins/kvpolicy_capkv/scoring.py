"""Score by information capacity: the leverage of values, weighted by coming queries."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.norms import row_norms
from kvpolicy.observation.observation import Observation
from kvpolicy.observation.query_statistics import query_statistics, rotary_for
from kvpolicy.observation.rotary import Rotary
from kvpolicy.options import as_float, at_most, boolean, count, natural, positive
from kvpolicy_kernels import gaussian_logits, sums_dtype, weighted_products

LEAST = 1e-12
"""A key of a smaller norm counts as one of this norm: 0 has no direction."""

FARTHEST = 2**17
"""The largest `future`: each future position needs a row of cosines and sines."""

SHARPEST = 1e6
"""The largest `tau`: what differs in float32 differs fully by then, and larger ones overflow."""


@attrs.frozen(kw_only=True)
class CapacityScorer:
    """Scores a position by how much its value adds to the capacity of the head's values.

    w_i = exp(tau cos(k_i, mu) - max),   A = I + sum_i w_i v_i v_i^T,   score_i = w_i v_i A^-1 v_i

    mu is the mean of the queries shown, before rotary embedding, turned by the mean rotation of the
    next `future` positions. The maximum is over the positions of the head. `cosine=False` takes the
    product k_i mu in place of the cosine, as the paper does. The first `sinks` tokens of the
    sequence are left out of mu and A, and get the best score of the head. The smoother's temporal
    part has no effect: all queries count equally.

    Yang et al., ICML 2026, https://arxiv.org/abs/2604.25975.

    >>> from kvpolicy.testing import observation
    >>> scores = CapacityScorer().score(observation(positions=9, window=9), lambda rows: rows)
    >>> bool((scores < 1).all())
    True
    """

    tau: float = attrs.field(
        default=5.0, converter=as_float, validator=[positive, at_most(SHARPEST)]
    )
    future: int = attrs.field(default=512, validator=[count, at_most(FARTHEST)])
    sinks: int = attrs.field(default=4, validator=natural)
    cosine: bool = attrs.field(default=True, validator=boolean)

    window: ClassVar[None] = None
    prefill_only: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("rotary",)

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Score every position by the weighted leverage of its value.

        Raises UnsupportedModelError if the rotary embedding is not known.
        """
        rotary = rotary_for(observation, "scorer 'capkv'")
        sinks = observation.positions < self.sinks
        weights = self._weights(observation, rotary, sinks)
        scores = _leverages(weights, observation.values).mul_(weights)
        by_group = scores.unflatten(1, (sinks.shape[1], -1))
        # Of equal scores the earlier position is kept, so sinks are kept before other positions.
        best = by_group.amax(-1, keepdim=True)
        return torch.where(sinks[:, :, None], best, by_group).flatten(1, 2)

    def _weights(
        self, observation: Observation, rotary: Rotary, sinks: Bool[Tensor, "B N S"]
    ) -> Float32[Tensor, "B H S"]:
        """Return how much coming queries are expected to look for each position; 0 for sinks."""
        keys, seen = observation.keys, observation.seen
        ahead = torch.arange(seen, seen + self.future, device=keys.device)
        mean = query_statistics(observation, rotary, ahead, sinks=self.sinks).mean
        if self.cosine:
            mean = torch.nn.functional.normalize(mean, dim=-1)
        logits = gaussian_logits(keys, mean, None, scaling=self.tau)
        by_group: Tensor = logits.unflatten(1, (sinks.shape[1], -1))
        if self.cosine:
            by_group /= row_norms(keys).clamp_min_(LEAST)[:, :, None]
        # Not -inf: a sequence may have only sinks, and the difference would then be NaN.
        by_group.masked_fill_(sinks[:, :, None], torch.finfo(logits.dtype).min)
        return by_group.sub_(by_group.amax(-1, keepdim=True)).exp_().flatten(1, 2)


def _leverages(
    weights: Float32[Tensor, "B H S"], values: Float[Tensor, "B N S Dv"]
) -> Float32[Tensor, "B H S"]:
    """Return v_i A^-1 v_i of each value, with A = I + sum_i w_i v_i v_i^T of the query head."""
    capacity = weighted_products(weights, values).to(sums_dtype(values.device))
    capacity.diagonal(dim1=-2, dim2=-1).add_(1)
    # A has no eigenvalue below 1, so nothing needs to be read back to check it. The inverse is
    # symmetric, and comes transposed in memory.
    inverse = torch.linalg.inv_ex(capacity).inverse.mT.float()
    # Of queries with mean 0 and covariance S, it is c^2 / 2 v S v.
    found = gaussian_logits(values, inverse.new_zeros(inverse.shape[:3]), inverse, scaling=2**0.5)
    return found.clamp_min_(0)

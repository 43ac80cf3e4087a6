"""Score by what queries at coming distances are expected to find, from their statistics."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.observation.query_statistics import query_statistics, rotary_for
from kvpolicy.observation.rotary import pair_sizes
from kvpolicy.options import at_most, boolean, count
from kvpolicy_kernels import gaussian_logits, rows_per_block, spans

FARTHEST = 2**20
"""The largest `farthest`: text that is longer is not read."""

LEAST = 1e-6
"""A smaller standard deviation of a head's scores counts as this."""


@attrs.frozen(kw_only=True)
class TrigonometricScorer:
    """Scores a position by the logits that queries at distances 1, 2, 4 ... are expected to give.

    f are the channel pairs as complex numbers, q the queries shown and k_i a key, both before
    rotary embedding, and w_f the angle of a pair between two positions. With D the distance from
    position i to the next token, and o = 1, 2, 4 ... `farthest`

    score_i = mean over o of sum_f |E q_f| |k_if| cos(w_f (D + o) + arg(E q_f conj k_if))
              + sum_f (E |q_f| - |E q_f|) |k_if|

    The first sum is the expected logit: a product of the key with the mean query, turned to these
    distances. The second is for what the mean does not say of the queries. With `normalize`, the
    scores of a query head have mean 0 and standard deviation 1. The smoother's temporal part has no
    effect: all queries count equally.

    Mao et al., 2026, https://arxiv.org/abs/2604.04921.

    >>> from kvpolicy.testing import observation
    >>> scores = TrigonometricScorer().score(observation(positions=9, window=9), lambda rows: rows)
    >>> scores.std(-1, unbiased=False)
    tensor([[1.0000, 1.0000, 1.0000, 1.0000]])
    """

    farthest: int = attrs.field(default=2**16, validator=[count, at_most(FARTHEST)])
    normalize: bool = attrs.field(default=True, validator=boolean)

    window: ClassVar[None] = None
    needs: ClassVar[tuple[str, ...]] = ("rotary",)

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Score every position by the queries shown.

        Raises UnsupportedModelError if the rotary embedding is not known.
        """
        rotary = rotary_for(observation, "scorer 'triattention'")
        keys = observation.keys
        exponents = torch.arange(self.farthest.bit_length(), device=keys.device)
        ahead = observation.seen + 2**exponents
        found = query_statistics(observation, rotary, ahead, dispersion=True)
        # A cached key is rotated already: the cosine of the equation is in their product.
        scores = gaussian_logits(keys, found.mean, None, scaling=1.0)
        assert found.dispersion is not None  # it was asked for
        _add_sizes(scores, found.dispersion, keys, interleaved=rotary.interleaved)
        if self.normalize:
            deviation, mean = torch.std_mean(scores, dim=-1, correction=0, keepdim=True)
            scores.sub_(mean).div_(deviation.clamp_min_(LEAST))
        return scores


def _add_sizes(
    scores: Float32[Tensor, "B H S"],
    dispersion: Float32[Tensor, "B H P"],
    keys: Float[Tensor, "B N S D"],
    *,
    interleaved: bool,
) -> None:
    """Add the size of each key's pairs, times the dispersion of the queries, to the scores."""
    batch, kv_heads, positions, _ = keys.shape
    pairs = dispersion.shape[-1]
    by_group = scores.view(batch * kv_heads, -1, positions)
    factors = dispersion.reshape(batch * kv_heads, -1, pairs)
    # A layer has values of about the size of its keys.
    step = rows_per_block(batch * kv_heads * pairs, keys.device, layer=2 * keys.nbytes)
    for block in spans(0, positions, step):
        # Without a name, so that the sizes are gone before those of the next block are there.
        by_group[..., block].baddbmm_(
            factors,
            pair_sizes(keys[:, :, block], pairs, interleaved=interleaved).flatten(0, 1).mT,
        )

"""Score by the key's direction: the less it agrees with the mean direction, the higher."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.options import count
from kvpolicy_kernels import rows_per_block, spans

TINY = 1e-12  # the smallest norm: a key of zeros has no direction, and scores 0


@attrs.frozen(kw_only=True)
class KeyDiffScorer:
    """Scores a position by the difference of its key from the mean direction of all keys.

    score_i = -cos(k_i, mean_j k_j / ||k_j||)    over all keys j that the head holds

    Attention is not used. Park et al., NeurIPS 2025, https://arxiv.org/abs/2504.15364.

    >>> from kvpolicy import Observation
    >>> keys = torch.tensor([[[[1.0, 0.0], [5.0, 0.0], [0.0, 2.0]]]])
    >>> layer = Observation(queries=torch.ones(1, 1, 1, 2), keys=keys, values=keys)
    >>> KeyDiffScorer().score(layer, lambda attention: attention.mean(-2))
    tensor([[[-0.8944, -0.8944, -0.4472]]])
    """

    capturable: ClassVar[bool] = True

    window: int = attrs.field(default=1, validator=count)

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Return the scores of a key/value head for each of its query heads."""
        scores = _similarity(observation.keys).neg_()
        groups = observation.queries.shape[1] // observation.keys.shape[1]
        return scores.repeat_interleave(groups, dim=1)


def _similarity(keys: Float[Tensor, "B N S D"]) -> Float32[Tensor, "B N S"]:
    """Return the cosine of each key and the mean direction, in blocks of bounded size.

    Two keys always differ from their mean by the same angle. In float32, rounding would decide
    between them, so the blocks are in float64.
    """
    scales = keys.new_empty(keys.shape[:3], dtype=torch.float64)
    sums = scales.new_zeros(*keys.shape[:2], 1, keys.shape[3])
    blocks = list(spans(0, keys.shape[2], rows_per_block(2 * keys[:, :, 0].numel(), keys.device)))
    for block in blocks:
        some = keys[:, :, block].double()
        norms: Tensor = torch.linalg.vector_norm(some, dim=-1)
        scales[:, :, block] = 1 / norms.clamp_(min=TINY)
        sums += scales[:, :, None, block] @ some
    anchor = F.normalize(sums, dim=-1, eps=TINY).mT
    for block in blocks:
        scales[:, :, block] *= (keys[:, :, block].double() @ anchor)[..., 0]
    return scales.float()

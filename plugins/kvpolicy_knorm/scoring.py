"""Score by the norm of the key: the smaller the norm, the higher the score."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.options import count


@attrs.frozen(kw_only=True)
class KeyNormScorer:
    """Scores a position by the negative norm of its key. Attention is not used.

    score_i = -||k_i||

    Devoto et al., EMNLP 2024, https://arxiv.org/abs/2406.11430.

    >>> from kvpolicy import Observation
    >>> keys = torch.tensor([[[[3.0, 4.0], [1.0, 0.0]]]])
    >>> layer = Observation(queries=torch.ones(1, 1, 1, 2), keys=keys, values=keys)
    >>> KeyNormScorer().score(layer, lambda attention: attention.mean(-2))
    tensor([[[-5., -1.]]])
    """

    position_bias: ClassVar[bool] = True

    window: int = attrs.field(default=1, validator=count)

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Return the scores of a key/value head for each of its query heads."""
        keys = observation.keys
        precision = torch.promote_types(keys.dtype, torch.float32)
        norms: Tensor = torch.linalg.vector_norm(keys, dim=-1, dtype=precision).float()
        groups = observation.queries.shape[1] // keys.shape[1]
        return -norms.repeat_interleave(groups, dim=1)

"""Score by attention: how much the window's queries attend to a position."""

from __future__ import annotations

from typing import ClassVar

import attrs
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.options import count


@attrs.frozen(kw_only=True)
class AttentionScorer:
    """Scores a position by the attention of the window's queries to it.

    Li et al., NeurIPS 2024, https://arxiv.org/abs/2404.14469.

    >>> import torch
    >>> from kvpolicy import Observation
    >>> layer = Observation(queries=torch.zeros(1, 1, 2, 1), keys=torch.zeros(1, 1, 4, 1),
    ...                     values=torch.zeros(1, 1, 4, 1))
    >>> AttentionScorer(window=2).score(layer, lambda attention: attention.sum(-2))
    tensor([[[0.5833, 0.5833, 0.5833, 0.2500]]])
    """

    replayable: ClassVar[bool] = True
    position_bias: ClassVar[bool] = True

    window: int = attrs.field(default=32, validator=count)

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Fold the window's attention into one row."""
        return observation.folded_attention(reduce)

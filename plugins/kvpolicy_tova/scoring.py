"""Score by the attention of the last query."""

from __future__ import annotations

from typing import ClassVar

import attrs
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.options import boolean, count


@attrs.frozen(kw_only=True)
class OmissionScorer:
    """Scores a position by the attention of the last query, the same for all heads of a layer.

    score_i = 1/H sum_h a_h[t, i]    with t the last query

    The smoother folds a `window` of more queries. `value_weighted` multiplies each head's attention
    by ||v_i||_1 before the mean.

    Oren et al., EMNLP 2024, https://arxiv.org/abs/2401.06104; `value_weighted`: Guo et al.,
    EMNLP 2024, https://arxiv.org/abs/2406.12335.

    >>> import torch
    >>> from kvpolicy import Observation
    >>> layer = Observation(queries=torch.tensor([[[[0.0]], [[100.0]]]]),
    ...                     keys=torch.tensor([[[[1.0], [0.0]]]]), values=torch.ones(1, 1, 2, 1))
    >>> OmissionScorer().score(layer, lambda attention: attention[..., -1, :])
    tensor([[[0.7500, 0.2500],
             [0.7500, 0.2500]]])
    """

    capturable: ClassVar[bool] = True
    position_bias: ClassVar[bool] = True

    across_heads: ClassVar[bool] = True

    window: int = attrs.field(default=1, validator=count)
    value_weighted: bool = attrs.field(default=False, validator=boolean)

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Return the mean of the attention over all query heads, the same for each head."""
        attention = observation.folded_attention(reduce)
        if self.value_weighted:
            groups = attention.shape[1] // observation.values.shape[1]
            norms = observation.values.float().abs().sum(-1)
            attention = attention * norms.repeat_interleave(groups, dim=1)
        return observation.of_all_heads(attention).mean(1, keepdim=True).expand_as(attention)

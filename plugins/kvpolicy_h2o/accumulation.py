"""Column sums of the attention matrix, which is never stored."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy_kernels import column_attention


def received(
    observation: Observation, queries: Float[Tensor, "B H T D"], *, causal: bool = True
) -> Float[Tensor, "B H S"]:
    """Return the sum of the attention of `queries`, which are those of the last T positions.

    With `causal` a query attends to its own and earlier positions, otherwise to all positions.

    >>> import torch
    >>> layer = Observation(queries=torch.zeros(1, 1, 2, 1), keys=torch.zeros(1, 1, 2, 1),
    ...                     values=torch.zeros(1, 1, 2, 1))
    >>> received(layer, layer.queries), received(layer, layer.queries, causal=False)
    (tensor([[[1.5000, 0.5000]]]), tensor([[[1., 1.]]]))
    """
    if observation.position_bias is not None and causal:
        heads = (observation.head(each).attention for each in range(observation.keys.shape[1]))
        return torch.cat([each.sum(2) for each in heads], 1)
    return column_attention(
        queries,
        observation.keys,
        scaling=observation.scaling,
        softcap=observation.softcap,
        sinks=observation.sink_logits,
        causal=causal,
    )

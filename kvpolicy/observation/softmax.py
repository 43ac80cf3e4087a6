"""Attention weights where a model has learned a sink for each head: one more logit, of no value."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def softmax(
    logits: Float[Tensor, "B H *rows S"], sink_logits: Float[Tensor, " H"] | None
) -> Float[Tensor, "B H *rows S"]:
    """Return weights that add up to one with the sink's, which is not returned.

    weight_i = exp(l_i) / (exp(sink_h) + sum_j exp(l_j))

    >>> softmax(torch.zeros(1, 1, 2), torch.tensor([0.0]))
    tensor([[[0.3333, 0.3333]]])
    """
    if sink_logits is None:
        return logits.softmax(-1)
    column = sink_logits.to(logits).view(-1, *[1] * (logits.dim() - 2))
    every = torch.cat([logits, column.expand(*logits.shape[:-1], 1)], -1)
    return every.softmax(-1)[..., :-1]

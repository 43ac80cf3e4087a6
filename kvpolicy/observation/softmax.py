"""Attention weights with learned sinks: the softmax runs over one more logit for each head."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def softmax(
    logits: Float[Tensor, "B H *rows S"], sink_logits: Float[Tensor, " H"] | None
) -> Float[Tensor, "B H *rows S"]:
    """Return the softmax over the positions and the head's learned sink, without the sink's weight.

    weight_i = exp(l_i) / (exp(sink_h) + sum_j exp(l_j)); with `sink_logits` None, the plain
    softmax.

    >>> softmax(torch.zeros(1, 1, 2), torch.tensor([0.0]))
    tensor([[[0.3333, 0.3333]]])
    """
    if sink_logits is None:
        return logits.softmax(-1)
    column = sink_logits.to(logits).view(-1, *[1] * (logits.dim() - 2))
    every = torch.cat([logits, column.expand(*logits.shape[:-1], 1)], -1)
    return every.softmax(-1)[..., :-1]

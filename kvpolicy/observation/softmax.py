"""Attention weights with learned sinks: the softmax runs over one more logit for each head."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def softmax_and_sink(
    logits: Float[Tensor, "B H *rows S"], sink_logits: Float[Tensor, " H"] | None
) -> tuple[Float[Tensor, "B H *rows S"], Float[Tensor, "B H *rows 1"] | None]:
    """Return the softmax, and the weight of the learned sink; None if the model has none.

    >>> softmax_and_sink(torch.zeros(1, 1, 2), torch.tensor([0.0]))[1]
    tensor([[[0.3333]]])
    """
    if sink_logits is None:
        return logits.softmax(-1), None
    column = sink_logits.to(logits).view(-1, *[1] * (logits.dim() - 2))
    every = torch.cat([logits, column.expand(*logits.shape[:-1], 1)], -1).softmax(-1)
    return every[..., :-1], every[..., -1:]


def softmax(
    logits: Float[Tensor, "B H *rows S"], sink_logits: Float[Tensor, " H"] | None
) -> Float[Tensor, "B H *rows S"]:
    """Return the softmax over the positions and the head's learned sink, without the sink's weight.

    weight_i = exp(l_i) / (exp(sink_h) + sum_j exp(l_j)); with `sink_logits` None, the plain
    softmax.

    >>> softmax(torch.zeros(1, 1, 2), torch.tensor([0.0]))
    tensor([[[0.3333, 0.3333]]])
    """
    return softmax_and_sink(logits, sink_logits)[0]

"""The averaged window attention in PyTorch: the specification, and the CPU path."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.logits import query_blocks


class WindowAttention(NamedTuple):
    """The averaged attention, and the logsumexp of every query's logits."""

    attention: Float32[Tensor, "B H S"]
    logsumexp: Float32[Tensor, "B H W"]


@torch.no_grad()
def window_attention(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    weights: Float[Tensor, " W"],
    *,
    scaling: float,
    softcap: float | None = None,
) -> WindowAttention:
    """Fold every block of softmax rows into the average as soon as it is computed."""
    weights = weights.float()
    attention = weights.new_zeros(*queries.shape[:2], keys.shape[2])
    logsumexp = weights.new_empty(queries.shape[:3])
    blocks = query_blocks(queries, keys, scaling=scaling, softcap=softcap, together=True)
    for b, _, h, w, logits in blocks:
        largest = logits.amax(-1)
        mass = logits.sub_(largest[..., None]).exp_().sum(-1)
        logsumexp[b, h, w] = largest + mass.log()
        share = (weights[w] / mass)[:, None]
        attention[b, h, : logits.shape[-1]] += (share @ logits)[:, 0]
    return WindowAttention(attention, logsumexp)

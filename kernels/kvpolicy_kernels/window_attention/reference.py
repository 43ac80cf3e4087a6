"""The window's attention in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.pytorch.logits import exponentials, query_blocks


class WindowAttention(NamedTuple):
    """The summed attention, and the logsumexp of each query's logits, its learned sink included."""

    attention: Float32[Tensor, "B H S"]
    logsumexp: Float32[Tensor, "B H W"]


@torch.no_grad()
def window_attention(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    weights: Float[Tensor, " W"] | Float[Tensor, "B W"],
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    causal: bool = True,
) -> WindowAttention:
    """Add each block of softmax rows to the sum as soon as it is computed."""
    weights = weights.float().expand(len(queries), -1)
    attention = weights.new_zeros(*queries.shape[:2], keys.shape[2])
    logsumexp = weights.new_empty(queries.shape[:3])
    blocks = query_blocks(
        queries, keys, scaling=scaling, softcap=softcap, together=True, causal=causal
    )
    for b, _, h, w, logits in blocks:
        own = None if sinks is None else sinks[h, None]
        folded, logsumexp[b, h, w] = fold(logits, weights[b, w], own)
        attention[b, h, : logits.shape[-1]] += folded
    return WindowAttention(attention, logsumexp)


def fold(
    logits: Float32[Tensor, "h w V"],
    weights: Float32[Tensor, " w"],
    sinks: Float[Tensor, "h 1"] | None,
) -> tuple[Float32[Tensor, "h V"], Float32[Tensor, "h w"]]:
    """Return the softmax of the rows, summed by `weights`, and their logsumexp.

    Overwrites `logits`.
    """
    base, mass = exponentials(logits, sinks)
    share = (weights / mass)[:, None]
    return (share @ logits)[:, 0], base + mass.log()

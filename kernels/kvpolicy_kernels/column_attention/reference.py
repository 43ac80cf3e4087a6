"""Column sums of the attention in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

from itertools import product

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.pytorch.logits import query_blocks
from kvpolicy_kernels.window_attention.reference import fold, window_attention


@torch.no_grad()
def column_attention(
    queries: Float[Tensor, "B H Q D"],
    keys: Float[Tensor, "B N S D"],
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    causal: bool = True,
) -> Float32[Tensor, "B H S"]:
    """Sum over all queries as one window, or one by one if each sees all positions."""
    ones = torch.ones(queries.shape[2], dtype=torch.float32, device=keys.device)
    if causal or queries.shape[2] == 1:
        return window_attention(
            queries, keys, ones, scaling=scaling, softcap=softcap, sinks=sinks
        ).attention
    attention = keys.new_zeros(*queries.shape[:2], keys.shape[2], dtype=torch.float32)
    group = queries.shape[1] // keys.shape[1]
    for row, head in product(*map(range, queries.shape[:2])):
        # The last query of a window sees all positions. So each query becomes a window of one.
        alone, shared = queries[row, head, None, :, None], keys[row, head // group, None, None]
        own = None if sinks is None else sinks[head, None, None]
        for block in query_blocks(alone, shared, scaling=scaling, softcap=softcap):
            rows = block.logits.transpose(0, 1)
            attention[row, head] += fold(rows, ones[block.heads], own)[0][0]
    return attention

"""A window's largest attention in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import rows_per_block, spans
from kvpolicy_kernels.common.pytorch.logits import exponentials, query_blocks
from kvpolicy_kernels.pool_scores.reference import pool_scores

LEAST = 1e-30


class LargestAttention(NamedTuple):
    """The largest pooled attention to each position before a window, and the mean attention."""

    largest: Float32[Tensor, "B N P"]
    mean: Float32[Tensor, "B N P"]


@torch.no_grad()
def largest_attention(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    width: int,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
) -> LargestAttention:
    """Pool and compare some softmax rows at a time."""
    batch, heads, window, _ = queries.shape
    kv_heads, past = keys.shape[1], keys.shape[2] - window
    largest = keys.new_zeros(batch, kv_heads, past, dtype=torch.float32)
    mean = torch.zeros_like(largest)
    step = rows_per_block(3 * past, keys.device)
    for b, n, h, _, logits in query_blocks(queries, keys, scaling=scaling, softcap=softcap):
        own = None if sinks is None else sinks[h, None]
        mass = exponentials(logits, own)[1].flatten()
        every = logits[..., :past].flatten(0, 1)
        for part in spans(0, len(every), step):
            rows = every[part].div_(mass[part, None])
            mean[b, n] += rows.sum(0)
            pooled = pooled_rows(rows, width)
            torch.maximum(largest[b, n], pooled.amax(0), out=largest[b, n])
    return LargestAttention(largest, mean.div_(heads // kv_heads * window))


def pooled_rows(rows: Float[Tensor, "*lead P"], width: int) -> Float[Tensor, "*lead P"]:
    """Average over neighbours, and multiply so that the sum of each row does not change.

    >>> pooled_rows(torch.tensor([[3.0, 0.0, 0.0]]), 3)
    tensor([[1.5000, 1.5000, 0.0000]])
    """
    pooled = pool_scores(rows.reshape(1, -1, rows.shape[-1]), width, edges="zero").view_as(rows)
    paid, left = (each.sum(-1, keepdim=True) for each in (rows, pooled))
    return pooled.mul_(paid / left.clamp_min(LEAST))

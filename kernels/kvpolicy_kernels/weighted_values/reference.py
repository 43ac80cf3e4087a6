"""Values summed by attention in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

from itertools import product

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import rows_per_block, spans


@torch.no_grad()
def weighted_values(
    attention: Float[Tensor, "B H S"], values: Float[Tensor, "B N S D"]
) -> Float32[Tensor, "B H D"]:
    """Multiply once for each key/value head and block of positions, in float32."""
    batch, kv_heads, positions, dim = values.shape
    heads = attention.shape[1]
    group = heads // kv_heads
    sums = values.new_zeros(batch, heads, dim, dtype=torch.float32)
    for b, n in product(range(batch), range(kv_heads)):
        h = slice(n * group, (n + 1) * group)
        for s in spans(0, positions, rows_per_block(dim, values.device)):
            sums[b, h] += attention[b, h, s].float() @ values[b, n, s].float()
    return sums

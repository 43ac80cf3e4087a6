"""Weighted sums of products in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import rows_per_block, spans


@torch.no_grad()
def weighted_products(
    weights: Float[Tensor, "B H S"], values: Float[Tensor, "B N S D"]
) -> Float32[Tensor, "B H D D"]:
    """Weigh the values of some positions at a time, in float32."""
    batch, kv_heads, positions, dim = values.shape
    by_group = weights.float().unflatten(1, (kv_heads, -1))
    sums: Tensor = by_group.new_zeros(*by_group.shape[:3], dim, dim)
    for block in spans(0, positions, rows_per_block(weights.shape[1] * batch * dim, values.device)):
        rows = values[:, :, None, block].float()
        sums += (rows * by_group[..., block, None]).mT @ rows
    return sums.flatten(1, 2)

"""Norms of projected values in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import rows_per_block, spans
from kvpolicy_kernels.common.pytorch.products import transposed_product


@torch.no_grad()
def projected_norms(
    values: Float[Tensor, "B N S Dv"],
    weights: Float[Tensor, "H R Dv"],
    *,
    order: Literal[1, 2] = 1,
) -> Float32[Tensor, "B N S"]:
    """Project head by head, in blocks of positions."""
    batch, kv_heads, positions, _ = values.shape
    group = weights.shape[0] // kv_heads
    step = rows_per_block(batch * weights.shape[1], values.device)
    norms = torch.zeros(batch, kv_heads, positions, dtype=torch.float32, device=values.device)
    for head, weight in enumerate(weights):
        projection, kv_head = weight.float(), head // group
        for s in spans(0, positions, step):
            rows = values[:, kv_head, s].float().flatten(0, 1)
            projected = transposed_product(rows, projection).unflatten(0, (batch, -1))
            norms[:, kv_head, s] += torch.linalg.vector_norm(projected, ord=order, dim=-1)
    return norms / group

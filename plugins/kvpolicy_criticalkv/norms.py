"""How large values are behind the output projection."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.chunking import rows_per_block, spans


def projected_norms(
    values: Float[Tensor, "B N S Dv"], weights: Float[Tensor, "H M Dv"], order: int
) -> Float32[Tensor, "B N S"]:
    """Return the norm of W_h v_i, averaged over the query heads h that read a value.

    Nothing of size S x M is made: a block of positions is projected at a time.

    >>> values = torch.tensor([[[[3.0, -4.0]]]])
    >>> [projected_norms(values, torch.eye(2)[None], order).item() for order in (1, 2)]
    [7.0, 5.0]
    """
    batch, kv_heads, positions, _ = values.shape
    group = weights.shape[0] // kv_heads
    step = rows_per_block(batch * weights.shape[1], values.device)
    norms = torch.zeros(batch, kv_heads, positions, device=values.device)
    for head, weight in enumerate(weights):
        projection, kv_head = weight.float().mT, head // group
        for rows in spans(0, positions, step):
            projected = values[:, kv_head, rows].float() @ projection
            norms[:, kv_head, rows] += torch.linalg.vector_norm(projected, ord=order, dim=-1)
    return norms / group

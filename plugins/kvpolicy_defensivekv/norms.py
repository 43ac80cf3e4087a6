"""How large values are behind the output projection."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.chunking import rows_per_block, spans


def projected_norms(
    values: Float[Tensor, "B N P Dv"], weights: Float[Tensor, "H M Dv"]
) -> Float32[Tensor, "B N P"]:
    """Return the L1 norm of W_h v_i, averaged over the query heads h that read a value.

    Nothing of size P x M is made: a block of positions is projected at a time.

    >>> projected_norms(torch.tensor([[[[3.0, -4.0]]]]), torch.eye(2)[None]).item()
    7.0
    """
    batch, kv_heads, positions, _ = values.shape
    group = weights.shape[0] // kv_heads
    step = rows_per_block(batch * weights.shape[1], values.device)
    norms = torch.zeros(batch, kv_heads, positions, device=values.device)
    for head, weight in enumerate(weights):
        projection, kv_head = weight.float().mT, head // group
        for rows in spans(0, positions, step):
            projected = values[:, kv_head, rows].float() @ projection
            norms[:, kv_head, rows] += projected.abs_().sum(-1)
    return norms / group

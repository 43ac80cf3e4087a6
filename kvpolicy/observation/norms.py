"""Norms of keys and values, in float32."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels import rows_per_block, spans


def row_norms(rows: Float[Tensor, "B N S D"]) -> Float32[Tensor, "B N S"]:
    """Return ||x_i||_2 of each row, without a float32 copy of all rows.

    >>> row_norms(torch.tensor([[[[3.0, 4.0], [0.0, 2.0]]]]))
    tensor([[[5., 2.]]])
    """
    if rows.device.type == "cuda":
        # It reads half precision and adds in float32, without a copy.
        precision = torch.promote_types(rows.dtype, torch.float32)
        norms: Tensor = torch.linalg.vector_norm(rows, dim=-1, dtype=precision)
        return norms.float()
    step = rows_per_block(rows[:, :, 0].numel(), rows.device)
    blocks = (rows[:, :, block].float() for block in spans(0, rows.shape[2], step))
    return torch.cat([block.norm(dim=-1) for block in blocks], -1)

"""The error of a group of query heads in PyTorch, on every device."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import rows_per_block, spans


@torch.no_grad()
def joint_reconstruction_error(
    odds: Float[Tensor, "B H S"],
    values: Float[Tensor, "B N S D"],
    output: Float[Tensor, "B H D"],
    factors: Float[Tensor, "N R GD"] | None,
) -> Float[Tensor, "B N S"]:
    """Stack the changes of a group's heads, and project them together, in blocks of positions."""
    batch, kv_heads, positions, dim = values.shape
    odds = odds.unflatten(1, (kv_heads, -1))
    outputs = output.to(odds.dtype).unflatten(1, (kv_heads, -1))[:, :, None]
    errors = odds.new_empty(batch, kv_heads, positions)
    floats = batch * kv_heads * outputs.shape[3] * dim
    for s in spans(0, positions, rows_per_block(2 * floats, values.device)):
        missing = outputs - values[:, :, s, None].to(odds.dtype)
        changes = (missing * odds[..., s, None].transpose(2, 3)).flatten(-2)
        if factors is not None:
            changes = changes @ factors.mT.to(odds.dtype)
        errors[..., s] = torch.linalg.vector_norm(changes, dim=-1)
    return errors

"""Expected logits in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import rows_per_block, spans


@torch.no_grad()
def gaussian_logits(
    keys: Float[Tensor, "B N S D"],
    mean: Float[Tensor, "B H D"],
    covariance: Float[Tensor, "B H D D"] | None,
    *,
    scaling: float,
) -> Float32[Tensor, "B H S"]:
    """Multiply some keys at a time, in float32."""
    batch, heads, dim = mean.shape
    by_group = (keys.shape[1], heads // keys.shape[1])
    scaled = mean.float().unflatten(1, by_group) * scaling
    found: Tensor = scaled.new_empty(*scaled.shape[:3], keys.shape[2])
    for block in spans(0, keys.shape[2], rows_per_block(batch * heads * dim, keys.device)):
        some = keys[:, :, None, block].float()
        logits = (some @ scaled[..., None])[..., 0]
        if covariance is not None:
            spread = covariance.float().unflatten(1, by_group)
            logits += (some @ spread).mul_(some).sum(-1) * (scaling**2 / 2)
        found[..., block] = logits
    return found.flatten(1, 2)

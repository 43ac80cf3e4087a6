"""Cosines with the mean direction in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import rows_per_block, spans

TINY = 1e-12
"""The smallest norm: a key of zeros has no direction."""


@torch.no_grad()
def direction_cosines(keys: Float[Tensor, "B N S D"]) -> Float32[Tensor, "B N S"]:
    """Read the keys twice, in blocks of bounded size."""
    scales = keys.new_empty(keys.shape[:3], dtype=torch.float64)
    if not scales.numel():
        return scales.float()
    sums = scales.new_zeros(*keys.shape[:2], 1, keys.shape[3])
    blocks = list(spans(0, keys.shape[2], rows_per_block(2 * keys[:, :, 0].numel(), keys.device)))
    for block in blocks:
        some = keys[:, :, block].double()
        norms: Tensor = torch.linalg.vector_norm(some, dim=-1)
        scales[:, :, block] = 1 / norms.clamp_(min=TINY)
        sums += scales[:, :, None, block] @ some
    anchor = F.normalize(sums, dim=-1, eps=TINY).mT
    for block in blocks:
        scales[:, :, block] *= (keys[:, :, block].double() @ anchor)[..., 0]
    return scales.float()

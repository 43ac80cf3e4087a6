"""QR factors in PyTorch, on every device."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import LOGITS_BYTES, spans


@torch.no_grad()
def head_factors(weight: Float[Tensor, "M columns"], heads: int) -> Float32[Tensor, "H R D"]:
    """Return R of the QR of each head's columns; unlike Cholesky of W'W, QR takes any rank."""
    model_dim, columns = weight.shape
    blocks = weight.view(model_dim, heads, columns // heads).transpose(0, 1)
    step = max(1, LOGITS_BYTES // (4 * model_dim * (columns // heads)))
    return torch.cat(
        [torch.linalg.qr(blocks[h].float(), mode="r").R for h in spans(0, heads, step)]
    )

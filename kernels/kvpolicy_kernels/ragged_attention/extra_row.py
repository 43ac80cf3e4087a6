"""The logits of an extra row of each head, as the kernels merge them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

LOG2_E = math.log2(math.e)
"""By it a logit to base e becomes one to base 2."""


def extra_totals_of(
    queries: Float[Tensor, "B H Q D"],
    keys: Float[Tensor, "B N D"],
    bias: Float[Tensor, "B N"],
    scaling: float,
    softcap: float | None,
) -> Float[Tensor, "B N Q G"]:
    """Return the logits of the extra rows, to base 2: one of each query."""
    rows = queries.float().unflatten(1, (keys.shape[1], -1)).transpose(2, 3)
    logits: Tensor = (rows @ keys.float()[:, :, None, :, None])[..., 0] * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = (logits + bias.float()[..., None, None]) * LOG2_E
    return logits.contiguous()

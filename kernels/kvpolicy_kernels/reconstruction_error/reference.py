"""The error of averaged attention in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

from itertools import product

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import rows_per_block, spans
from kvpolicy_kernels.common.pytorch.odds import odds
from kvpolicy_kernels.common.pytorch.products import transposed_product


@torch.no_grad()
def reconstruction_error(
    attention: Float[Tensor, "B H S"],
    values: Float[Tensor, "B N S D"],
    output: Float[Tensor, "B H D"],
    factors: Float[Tensor, "H R D"] | None,
    *,
    tau: float = 1.0,
    known: tuple[Int64[Tensor, "B H 1"], Float32[Tensor, "B H 1"]] | None = None,
) -> Float32[Tensor, "B H S"]:
    """Compute block by block, so that the values stay in the CPU's cache for the whole group.

    The difference is projected: R (o - v). R o - R v would be faster, but it loses the digits of
    values close to o.
    """
    batch, kv_heads, positions, dim = values.shape
    group = attention.shape[1] // kv_heads
    output = output.float()
    errors = output.new_empty(attention.shape)
    # The cache holds the values, their distance from o, and its projection.
    step = rows_per_block(3 * dim, values.device)
    for b, n in product(range(batch), range(kv_heads)):
        for s in spans(0, positions, step):
            block = values[b, n, s].float()
            for h in range(n * group, (n + 1) * group):
                missing = output[b, h] - block
                if factors is not None:
                    missing = transposed_product(missing, factors[h].float())
                norm = torch.linalg.vector_norm(missing, dim=-1).pow_(tau)
                errors[b, h, s] = norm.mul_(odds(attention[b, h, s].float()))
    return errors if known is None else errors.scatter_(-1, *known)

"""The error of the averaged attention in PyTorch: the specification, and the CPU path."""

from __future__ import annotations

from itertools import product

import torch
from jaxtyping import Float, Float32
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
) -> Float32[Tensor, "B H S"]:
    """Take one key/value head at a time: a block of its values serves the whole group from cache.

    R (o - v), not R o - R v: slower, and as exact for values close to o, where the
    difference of projections has lost its digits.
    """
    batch, kv_heads, positions, dim = values.shape
    group = attention.shape[1] // kv_heads
    output = output.float()
    errors = output.new_empty(attention.shape)
    # What is in the cache at a time: values, their distance from o, and that projected.
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
    return errors

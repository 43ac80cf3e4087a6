"""The error of the averaged attention in PyTorch: the specification, and the CPU path."""

from __future__ import annotations

from itertools import product

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.chunking import rows_per_block, spans
from kvpolicy_kernels.matmul import transposed_product

LEAST_REST = 2.0**-20
"""A sink can hold all attention but a rounding error: its odds must stay finite."""


def odds(attention: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Odds a / (1 - a) of being attended, where 1 - a counts as at least 2 ** -20.

    >>> import torch
    >>> odds(torch.tensor([0.0, 0.5, 1.0]))
    tensor([0.0000e+00, 1.0000e+00, 1.0486e+06])
    """
    return attention / (1 - attention).clamp_min(LEAST_REST)


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


@torch.no_grad()
def weighted_values(
    attention: Float[Tensor, "B H S"], values: Float[Tensor, "B N S D"]
) -> Float32[Tensor, "B H D"]:
    """One product per key/value head, over blocks of positions that are converted on the way."""
    batch, kv_heads, positions, dim = values.shape
    heads = attention.shape[1]
    group = heads // kv_heads
    sums = values.new_zeros(batch, heads, dim, dtype=torch.float32)
    for b, n in product(range(batch), range(kv_heads)):
        h = slice(n * group, (n + 1) * group)
        for s in spans(0, positions, rows_per_block(dim, values.device)):
            sums[b, h] += attention[b, h, s].float() @ values[b, n, s].float()
    return sums

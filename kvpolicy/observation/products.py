"""Products of queries and keys, whose query heads share the keys of their group."""

from __future__ import annotations

from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels import rows_per_block, spans


def scaled_products(
    queries: Float[Tensor, "B H W D"], keys: Float[Tensor, "B N S D"], scaling: float
) -> Float32[Tensor, "B H W S"]:
    """Return scaling * q.k of every query and key, in float32.

    >>> import torch
    >>> scaled_products(torch.ones(1, 2, 1, 4), torch.ones(1, 1, 3, 4), 0.5)[0, 1]
    tensor([[2., 2., 2.]])
    """
    length = keys.shape[2]
    by_group = queries.float().unflatten(1, (keys.shape[1], -1)).flatten(2, 3)
    products = by_group.new_empty(*by_group.shape[:3], length)
    # Half-precision keys are read in blocks: a copy of them all in float32 would be large.
    step = rows_per_block(keys[:, :, 0].numel(), products.device)
    for block in spans(0, length, step):
        products[..., block] = by_group @ keys[:, :, block].float().mT
    scaled: Tensor = products.mul_(scaling).view(*queries.shape[:3], length)
    return scaled

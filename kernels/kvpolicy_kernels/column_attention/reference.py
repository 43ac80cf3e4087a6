"""Column sums of the attention in PyTorch: the specification, and the CPU path."""

from __future__ import annotations

from itertools import product

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.logits import query_blocks


@torch.no_grad()
def column_attention(
    queries: Float[Tensor, "B H Q D"],
    keys: Float[Tensor, "B N S D"],
    *,
    scaling: float,
    softcap: float | None = None,
    causal: bool = True,
) -> Float32[Tensor, "B H S"]:
    """Sum every block of softmax rows as soon as it is computed."""
    attention = torch.zeros(
        *queries.shape[:2], keys.shape[2], dtype=torch.float32, device=keys.device
    )
    if causal or queries.shape[2] == 1:
        blocks = query_blocks(queries, keys, scaling=scaling, softcap=softcap, together=True)
        for b, _, h, _, logits in blocks:
            attention[b, h, : logits.shape[-1]] += _softmax(logits).sum(-2)
        return attention
    group = queries.shape[1] // keys.shape[1]
    for row, head in product(*map(range, queries.shape[:2])):
        # A window's last query sees all there is: each becomes the only query of a head.
        alone, shared = queries[row, head, None, :, None], keys[row, head // group, None, None]
        for block in query_blocks(alone, shared, scaling=scaling, softcap=softcap):
            attention[row, head] += _softmax(block.logits[:, 0]).sum(-2)
    return attention


def _softmax(logits: Float32[Tensor, "*lead V"]) -> Float32[Tensor, "*lead V"]:
    """Normalise in place: another block would not stay in the cache of a core."""
    return torch.softmax(logits, -1, out=logits)

"""Attention to chosen blocks in PyTorch: the specification. It costs as much as dense attention."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_BYTES = 2**24


@torch.no_grad()
def block_attention(
    queries: Float[Tensor, "B H S D"],
    keys: Float[Tensor, "B N S D"],
    values: Float[Tensor, "B N S Dv"],
    blocks: Bool[Tensor, "b h M M"],
    *,
    block: int,
    scaling: float,
    softcap: float | None,
) -> Float[Tensor, "B H S Dv"]:
    """Return attention to the chosen blocks: mask the logits of a few queries at a time.

    >>> queries, keys = torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 4, 8)
    >>> values, blocks = torch.arange(4.0).view(1, 1, 4, 1), torch.eye(2).bool()[None, None]
    >>> block_attention(
    ...     queries, keys, values, blocks, block=2, scaling=1.0, softcap=None).flatten()
    tensor([0.0000, 0.5000, 2.0000, 2.5000])
    """
    batch, heads, length, dim = queries.shape
    kv_heads = keys.shape[1]
    output = queries.new_empty((batch, heads, length, values.shape[-1]))
    column = torch.arange(length, device=queries.device)
    by_key = blocks[..., column // block]
    step = max(1, _BYTES // (4 * batch * heads * length))
    for first in range(0, length, step):
        row = column[first : first + step]
        last = first + len(row)
        visible = by_key[:, :, row // block, :last] & (column[:last] <= row[:, None])
        rows = (queries[:, :, row].float() * scaling).reshape(batch, kv_heads, -1, dim)
        logits = (rows @ keys[:, :, :last].float().mT).view(batch, heads, len(row), last)
        if softcap is not None:
            logits = logits.div_(softcap).tanh_().mul_(softcap)
        weights = logits.masked_fill_(~visible, -torch.inf).softmax(-1)
        grouped = weights.view(batch, kv_heads, -1, last) @ values[:, :, :last].float()
        output[:, :, row] = grouped.view(batch, heads, len(row), -1).to(output.dtype)
    return output

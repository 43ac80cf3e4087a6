"""Sums of the last queries' attention over columns and diagonals, in blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from kvpolicy.prefill.a_shape import AShape
from kvpolicy.prefill.blocks import blocks_of
from kvpolicy_kernels import window_attention

_BYTES = {"cpu": 2**24, "cuda": 2**26}
"""The bytes of attention held at once. On a CPU larger temporaries cost page faults."""


@torch.no_grad()
def sums_of_last_attention(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    beside: AShape,
    *,
    scaling: float,
    softcap: float | None,
) -> tuple[Float32[Tensor, "B H M"], Float32[Tensor, "B H M"]]:
    """Return sums of the attention of the last W queries of a prompt to keys outside an A-shape.

    The first sums are over columns: the attention that each block of keys gets. The second are over
    diagonals: the attention at each distance in blocks. Pairs at a distance of d tokens lie at the
    block distances d // block and d // block + 1. The sum of d is split by their shares.
    """
    batch, heads, window, dim = queries.shape
    length, block = keys.shape[2], beside.block
    uniform = torch.full((window,), 1 / window, dtype=torch.float32, device=keys.device)
    whole = window_attention(queries, keys, uniform, scaling=scaling, softcap=softcap)
    logsumexp = whole.logsumexp[..., None]
    grouped = (queries.float() * scaling).reshape(batch, keys.shape[1], -1, dim)
    columns = logsumexp.new_zeros(batch, heads, blocks_of(length, block))
    diagonals = logsumexp.new_zeros(batch, heads, length + window - 1)
    step = block * max(1, _BYTES.get(keys.device.type, 2**26) // (4 * logsumexp.numel() * block))
    for first in range(0, length, step):
        last = min(first + step, length)
        logits = (grouped @ keys[:, :, first:last].float().mT).view(batch, heads, window, -1)
        if softcap is not None:
            logits = logits.div_(softcap).tanh_().mul_(softcap)
        outside = _outside(beside, window, length, first, last, keys.device)
        attention = logits.sub_(logsumexp).exp_().masked_fill_(~outside, 0.0)
        columns[..., first // block : blocks_of(last, block)] = _by_block(attention.sum(2), block)
        sums = _diagonal_sums(attention)
        diagonals[..., length - last : length - last + sums.shape[-1]] += sums
    return columns, _by_blocks_ahead(diagonals[..., window - 1 :], block)


def _outside(
    beside: AShape, window: int, length: int, first: int, last: int, device: torch.device
) -> Bool[Tensor, "W C"]:
    """Return which keys from `first` to `last` each query attends to outside the A-shape."""
    query = torch.arange(length - window, length, device=device)[:, None] // beside.block
    key = torch.arange(first, last, device=device) // beside.block
    return (query - key > beside.local_blocks) & (key >= beside.sink_blocks)


def _by_block(values: Float32[Tensor, "B H C"], block: int) -> Float32[Tensor, "B H m"]:
    padded = F.pad(values, (0, -values.shape[-1] % block))
    return padded.view(*padded.shape[:-1], -1, block).sum(-1)


def _diagonal_sums(attention: Float32[Tensor, "B H W C"]) -> Float32[Tensor, "B H d"]:
    """Return the sum over each distance between query and key, the shortest distance first.

    There are W + C - 1 distances. Rows of W + C entries are read as rows of W + C - 1. That shifts
    each query's row by one entry more than the row before, so a distance becomes a column.

    >>> _diagonal_sums(torch.tensor([[[[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]]]))
    tensor([[[ 3., 32., 21., 10.]]])
    """
    window, count = attention.shape[2:]
    width = window + count - 1
    rows = F.pad(attention.flip(-1), (0, window)).flatten(2)[..., : window * width]
    return rows.view(*rows.shape[:2], window, width).sum(2)


def _by_blocks_ahead(diagonals: Float32[Tensor, "B H S"], block: int) -> Float32[Tensor, "B H M"]:
    """Split the sum of each distance between the two nearest distances in blocks.

    >>> _by_blocks_ahead(torch.tensor([[[0.0, 4.0, 8.0, 0.0]]]), 2)
    tensor([[[ 2., 10.]]])
    """
    padded = F.pad(diagonals, (0, -diagonals.shape[-1] % block))
    by_block = padded.view(*padded.shape[:-1], -1, block)
    share = torch.arange(block, device=diagonals.device) / block
    sums = by_block @ (1 - share)
    sums[..., 1:] += (by_block @ share)[..., :-1]
    return sums

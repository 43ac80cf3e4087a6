"""Blocks of causal attention: their number, their lists, and their share of all pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float64, Int, Int32
from torch import Tensor


def blocks_of(tokens: int, block: int) -> int:
    """Return how many blocks `tokens` tokens need.

    >>> blocks_of(0, 4), blocks_of(4, 4), blocks_of(5, 4)
    (0, 1, 2)
    """
    return -(-tokens // block)


def offsets(count: int, device: torch.device) -> Int[Tensor, "M M"]:
    """Return by how many blocks each block of queries is ahead of each block of keys.

    >>> offsets(2, torch.device("cpu"))
    tensor([[ 0, -1],
            [ 1,  0]])
    """
    block = torch.arange(count, device=device)
    return block[:, None] - block


def attended(chosen: Bool[Tensor, "b h M M"]) -> Bool[Tensor, "b h M M"]:
    """Return the chosen blocks at or below the diagonal, and the whole diagonal."""
    ahead = offsets(chosen.shape[-1], chosen.device)
    return (chosen & (ahead >= 0)) | (ahead == 0)


def listed(
    blocks: Bool[Tensor, "b h M M"],
) -> tuple[Int32[Tensor, "b h M"], Int32[Tensor, "b h M M"]]:
    """Return each row's number of blocks, and their indices in ascending order, padded with 0.

    >>> listed(torch.tensor([[[[False, True], [True, True]]]]))
    (tensor([[[1, 2]]], dtype=torch.int32), tensor([[[[1, 0], [0, 1]]]], dtype=torch.int32))
    """
    count = blocks.shape[-1]
    # Other blocks are written to one more column, which is cut off. So no length is read back.
    place = blocks.cumsum(-1).sub_(1).masked_fill_(~blocks, count)
    indices = torch.zeros((*blocks.shape[:-1], count + 1), dtype=torch.int32, device=blocks.device)
    block = torch.arange(count, dtype=torch.int32, device=blocks.device).expand_as(place)
    indices.scatter_(-1, place, block)
    return blocks.sum(-1, dtype=torch.int32), indices[..., :count].contiguous()


def density(
    blocks: Bool[Tensor, "b h M M"], lengths: Sequence[int], block: int
) -> Float64[Tensor, ""]:
    """Return the share of causal query-key pairs that lie in attended blocks, over all heads.

    Sequences begin at the first block and have `lengths` tokens. Pairs beyond them do not count.

    >>> density(torch.ones(1, 1, 2, 2, dtype=torch.bool).tril(), [3], 2).item()
    1.0
    >>> density(torch.eye(2, dtype=torch.bool)[None, None], [3], 2).item()  # (0, 0) (1, 0) (1, 1)
    0.6666666666666666
    """
    first = torch.arange(0, blocks.shape[-1] * block, block, device=blocks.device)
    below = blocks.tril(-1).sum(-1).double().mean(1).expand(len(lengths), -1)
    pairs = first.new_zeros((), dtype=torch.float64)
    # The lengths are on the host. Copying them to a GPU would make it wait.
    for row, length in zip(below, lengths, strict=True):
        queries = (length - first).clamp(0, block).double()
        pairs += (queries * block * row + queries * (queries + 1) / 2).sum()
    return pairs / sum(length * (length + 1) / 2 for length in lengths)

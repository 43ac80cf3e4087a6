"""Mean positions of the largest logits in PyTorch: the specification, and the CPU path."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from kvpolicy_kernels.logits import query_blocks


@torch.no_grad()
def row_statistics(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    count: int,
    *,
    scaling: float,
) -> Float64[Tensor, "B H W"]:
    """Take the largest logits of each row: softmax and softcap would not change their order."""
    window, positions = queries.shape[2], keys.shape[2]
    seen = torch.arange(positions - window + 1, positions + 1, device=keys.device)
    whole_row = (seen - 1).double() / 2
    means = whole_row.expand(queries.shape[:3]).clone()
    short = max(0, min(window, count - (positions - window)))
    if short == window:
        return means
    for b, _, h, w, logits in query_blocks(queries, keys, scaling=scaling, softcap=None):
        first = max(short, w.start)
        if first < w.stop:
            sums = _largest_positions(logits[:, first - w.start :], count)
            means[b, h, first : w.stop] = sums.double() / count
    return means


def _largest_positions(logits: Float32[Tensor, "h w V"], count: int) -> Int64[Tensor, "h w"]:
    """Sum the positions of each row's `count` largest; integers, so the order cannot matter."""
    top = _top(logits, count + 1)
    least = top.values.topk(2, largest=False)
    excluded = top.indices.gather(-1, least.indices[..., :1])[..., 0]
    sums: Tensor = top.indices.sum(-1) - excluded
    next_best, cut = least.values.unbind(-1)
    tied = next_best == cut
    # Which of several equal logits topk returns is undefined. On a GPU asking would synchronise.
    if tied.is_cuda or tied.any():
        sums = torch.where(tied, _lowest_positions(logits, cut[..., None], count), sums)
    return sums


def _top(logits: Float32[Tensor, "h w V"], count: int) -> torch.return_types.topk:
    if not logits.is_cuda:
        top = logits.topk(count, sorted=False)
        if not top.values.isnan().any():
            return top
    # A NaN would be the largest. On a GPU asking for one would synchronise.
    return logits.masked_fill_(logits.isnan(), -torch.inf).topk(count, sorted=False)


def _lowest_positions(
    logits: Float32[Tensor, "h w V"], cut: Float32[Tensor, "h w 1"], count: int
) -> Int64[Tensor, "h w"]:
    """Sum the positions above the cut, and of those that equal it the first that fit."""
    above = logits > cut
    equal = logits == cut
    room = count - above.sum(-1, keepdim=True)
    taken = above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= room))
    position = torch.arange(logits.shape[-1], dtype=torch.int32, device=logits.device)
    return (taken * position).sum(-1)

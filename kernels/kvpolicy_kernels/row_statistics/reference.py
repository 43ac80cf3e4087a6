"""Mean positions of the largest logits in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from kvpolicy_kernels.common.pytorch.largest import largest, without_nan
from kvpolicy_kernels.common.pytorch.logits import query_blocks


@torch.no_grad()
def row_statistics(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    count: int,
    *,
    scaling: float,
    softcap: float | None = None,
) -> Float64[Tensor, "B H W"]:
    """Rank by logits: neither softmax nor softcap changes their order."""
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
    """Sum the positions of each row's `count` largest logits, as integers: any order is exact."""
    positions = logits.shape[-1]
    if logits.device.type == "cpu":
        found = torch.from_numpy(np.flatnonzero(largest(without_nan(logits), count)))
        sums: Tensor = (found.view(*logits.shape[:-1], count) % positions).sum(-1)
        return sums
    # Both cases are computed, with ties and without: to ask which one holds would wait for the GPU.
    top = logits.masked_fill_(logits.isnan(), -torch.inf).topk(count + 1, sorted=False)
    least = top.values.topk(2, largest=False)
    excluded = top.indices.gather(-1, least.indices[..., :1])[..., 0]
    next_best, cut = least.values.unbind(-1)
    # `topk` may return any of several equal logits, so ties are resolved by position.
    position = torch.arange(positions, dtype=torch.int32, device=logits.device)
    ties = (_lowest_positions(logits, cut[..., None], count) * position).sum(-1)
    return torch.where(next_best == cut, ties, top.indices.sum(-1) - excluded)


def _lowest_positions(
    logits: Float32[Tensor, "h w V"], cut: Float32[Tensor, "h w 1"], count: int
) -> Bool[Tensor, "h w V"]:
    """Mark the positions above the cut, and of those equal to it the first ones, `count` in all."""
    above = logits > cut
    equal = logits == cut
    room = count - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= room))

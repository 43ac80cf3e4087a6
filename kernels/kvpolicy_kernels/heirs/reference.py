"""Heirs and what they inherit in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int, Int32
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import rows_per_block, spans
from kvpolicy_kernels.summed_rows.reference import summed_rows


class Heirs(NamedTuple):
    """For every evicted row: the place among the kept rows where its heirs begin, and its share."""

    first: Int32[Tensor, "B N E"]
    shares: Float32[Tensor, "B N E"]


@torch.no_grad()
def heirs(
    attention: Float[Tensor, "B N S"],
    draws: Float[Tensor, "B N S"],
    kept: Int[Tensor, "B N K"],
    evicted: Int[Tensor, "B N E"],
    most: int,
) -> Heirs:
    """Take the mean over heirs from all runs of `most` kept rows, at the first heir."""
    length, slots = attention.shape[2], kept.shape[2]
    most = min(most, slots)
    is_kept = kept < length
    first = torch.searchsorted(kept.contiguous(), evicted.contiguous(), out_int32=True)
    # Fillers come after all kept rows, so they have no heirs.
    counts = (is_kept.sum(-1, keepdim=True, dtype=torch.int32) - first).clamp_(0, most)
    first = first.clamp_(max=slots - 1)
    of_kept = attention.gather(-1, kept.clamp(max=length - 1)).where(is_kept, 0.0)
    ahead = F.pad(of_kept, (0, most - 1)).unfold(-1, most, 1).sum(-1)
    mean = ahead.gather(-1, first.long()) / counts
    rows = evicted.where(evicted < length, 0)
    # 0 / 0: attention underflowed on both sides. Then nothing is merged. Without heirs the mean is
    # infinite or 0 / 0.
    chances = (attention.gather(-1, rows) / mean).nan_to_num_(nan=0.0).clamp_(max=1.0)
    leaves = draws.gather(-1, rows) < chances
    return Heirs(first, leaves.float() / counts.clamp(min=1))


@torch.no_grad()
def inherited_values(
    kept: Float[Tensor, "B N K Dv"],
    values: Float[Tensor, "B N S Dv"],
    evicted: Int[Tensor, "B N E"],
    first: Int[Tensor, "B N E"],
    shares: Float[Tensor, "B N E"],
    most: int,
) -> Float[Tensor, "B N K Dv"]:
    """Add up values at the slot of their first heir, then over the slots of all heirs."""
    slots = kept.shape[2]
    (begun,) = summed_rows([values], evicted, first, shares, count=slots, ascending=True)
    most = min(most, slots)
    if most > 1:
        step = rows_per_block(4 * begun[..., 0].numel(), begun.device, layer=2 * values.nbytes)
        for channels in spans(0, begun.shape[3], step):
            some = F.pad(begun[..., channels], (0, 0, most - 1, 0))
            begun[..., channels] = some.unfold(2, most, 1).sum(-1)
    return begun.add_(kept).to(kept.dtype)

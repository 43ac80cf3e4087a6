"""The heirs of evicted positions, the probabilities of merging, and the sums of merged values."""

from __future__ import annotations

import zlib

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kvpolicy.observation.draws import drawn
from kvpolicy.observation.observation import Observation
from kvpolicy.stages.compaction import Evicted
from kvpolicy.stages.grouping import reduce_groups
from kvpolicy.stages.smoothing import MeanSmoother, fold_of
from kvpolicy_kernels import rows_per_block, spans, summed_rows


@attrs.frozen(kw_only=True, eq=False)
class Heirs:
    """The kept positions that follow each evicted one: `counts` slots of the smaller cache.

    They begin at slot `first`. A filler among the evicted rows points to row 0 and has no heirs.
    `is_kept` is None if no kept row is a filler.
    """

    kept: Int[Tensor, "B N K"]
    is_kept: Bool[Tensor, "B N K"] | None
    evicted: Int[Tensor, "B N E"]
    first: Int[Tensor, "B N E"]
    counts: Int[Tensor, "B N E"]
    most: int

    @classmethod
    def of(
        cls,
        indices: Int[Tensor, "B N K"],
        evicted: Int[Tensor, "B N E"],
        *,
        length: int,
        neighbours: int,
        is_full: bool = False,
    ) -> Heirs:
        """Find at most `neighbours` heirs for each evicted row. K must be at least 1.

        `is_full` says that there are no fillers: all heads keep K rows.

        >>> heirs = Heirs.of(
        ...     torch.tensor([[[0, 3, 4]]]), torch.tensor([[[1, 2]]]), length=5, neighbours=8)
        >>> heirs.first, heirs.counts
        (tensor([[[1, 1]]], dtype=torch.int32), tensor([[[2, 2]]], dtype=torch.int32))
        """
        slots = indices.shape[-1]
        most = min(neighbours, slots)
        first = torch.searchsorted(indices.contiguous(), evicted.contiguous(), out_int32=True)
        if is_full:
            counts = (slots - first).clamp_(0, most)
            return cls(
                kept=indices,
                is_kept=None,
                evicted=evicted,
                first=first.clamp_(max=slots - 1),
                counts=counts,
                most=most,
            )
        is_kept = indices < length
        # Fillers come after all kept rows, so they have no heirs.
        counts = (is_kept.sum(-1, keepdim=True, dtype=torch.int32) - first).clamp_(0, most)
        return cls(
            kept=indices.clamp(max=length - 1),
            is_kept=is_kept,
            evicted=evicted.where(evicted < length, 0),
            first=first.clamp_(max=slots - 1),
            counts=counts,
            most=most,
        )


MEAN = fold_of(MeanSmoother())
"""It remembers the weights that it has sent to a device."""


def window_attention(observation: Observation) -> Float[Tensor, "B N S"]:
    """Return the attention of the queries shown, averaged over them and over the group."""
    attention = observation.folded_attention(MEAN)
    return reduce_groups(attention, observation.keys.shape[1], "mean")


def merge_probabilities(attention: Float[Tensor, "B N S"], heirs: Heirs) -> Float[Tensor, "B N E"]:
    """Return min(1, a_i / mean a_j) for every evicted i and its heirs j; 0 without heirs.

    >>> heirs = Heirs.of(
    ...     torch.tensor([[[1, 2]]]), torch.tensor([[[0]]]), length=3, neighbours=1)
    >>> merge_probabilities(torch.tensor([[[0.1, 0.3, 0.6]]]), heirs)
    tensor([[[0.3333]]])
    """
    of_kept = attention.gather(-1, heirs.kept)
    if heirs.is_kept is not None:
        of_kept = of_kept.where(heirs.is_kept, 0.0)
    ahead = F.pad(of_kept, (0, heirs.most - 1)).unfold(-1, heirs.most, 1).sum(-1)
    mean = ahead.gather(-1, heirs.first.long()) / heirs.counts
    ratio = attention.gather(-1, heirs.evicted) / mean
    # 0 / 0: attention underflowed on both sides. Then nothing is merged. Without heirs the mean is
    # infinite or 0 / 0.
    return ratio.nan_to_num_(nan=0.0).clamp_(max=1.0)


def draws(seed: int, observation: Observation) -> Float[Tensor, "B N S"]:
    """Draw a number in [0, 1) for every head and position. All sequences get the same numbers.

    A head gets the same numbers if it is shown alone and if it is shown with its layer.
    """
    batch, heads, length, _ = observation.keys.shape
    groups = observation.queries.shape[1] // heads
    before = observation.first_of_layer // groups
    # A generator on the CPU uses only 32 bits of its seed.
    mark = f"{seed} {observation.layer} {observation.seen}"
    draw = drawn(before + heads, length, zlib.crc32(mark.encode()), observation.keys.device)
    return draw[before:].expand(batch, -1, -1)


def inherited(
    evicted: Evicted, merged: Bool[Tensor, "B N E"], heirs: Heirs
) -> Float[Tensor, "B N K Dv"]:
    """Return the sum of the values that are merged into each slot of the smaller cache.

    Values are first summed at the slot of their first heir, then over the slots of all heirs. A GPU
    adds in varying order; in float64 this does not change the result.
    """
    share = merged.float() / heirs.counts.clamp(min=1)
    values, count = evicted.all_values, heirs.kept.shape[2]
    # Evicted rows ascend, and so do the slots of the kept rows behind them.
    (begun,) = summed_rows([values], evicted.rows, heirs.first, share, count=count, ascending=True)
    if heirs.most == 1:
        return begun
    step = rows_per_block(4 * begun[..., 0].numel(), begun.device, layer=2 * values.nbytes)
    for channels in spans(0, begun.shape[3], step):
        some = F.pad(begun[..., channels], (0, 0, heirs.most - 1, 0))
        begun[..., channels] = some.unfold(2, heirs.most, 1).sum(-1)
    return begun

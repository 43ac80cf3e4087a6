"""The kept key that is most similar to each evicted key."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from kvpolicy.stages.compaction import Evicted
from kvpolicy_kernels import rows_per_block, spans


class Match(NamedTuple):
    """For every evicted key: the slot of the most similar kept key, and their cosine."""

    slots: Int64[Tensor, "B N E"]
    similarity: Float32[Tensor, "B N E"]


def nearest_kept(
    evicted: Evicted, kept: Float[Tensor, "B N K D"], is_kept: Bool[Tensor, "B N K"]
) -> Match:
    """Match evicted keys to kept ones by cosine, in blocks of bounded size.

    >>> kept = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    >>> keys = torch.tensor([[[[3.0, 4.0]]]])
    >>> row = torch.zeros(1, 1, 1, dtype=torch.long)
    >>> evicted = Evicted(rows=row, is_row=row == 0, all_keys=keys, all_values=keys)
    >>> match = nearest_kept(evicted, kept, torch.ones(1, 1, 2).bool())
    >>> match.slots, match.similarity
    (tensor([[[1]]]), tensor([[[0.8000]]]))
    """
    directions = _directions(kept).mT
    slots = torch.empty_like(evicted.rows)
    similarity = slots.new_empty(slots.shape, dtype=torch.float32)
    rows = rows_per_block(is_kept.numel(), kept.device)
    for block, keys in evicted.blocks_of(evicted.all_keys):
        for some in spans(0, keys.shape[2], rows):
            cosines = _directions(keys[:, :, some]) @ directions
            best = cosines.masked_fill_(~is_kept[:, :, None], -torch.inf).max(-1)
            places = slice(block.start + some.start, block.start + some.stop)
            similarity[:, :, places], slots[:, :, places] = best
    # A head that keeps nothing has no cosine, and its maximum is -inf.
    return Match(slots=slots, similarity=similarity.clamp_(min=-1.0))


def _directions(keys: Float[Tensor, "B N R D"]) -> Float32[Tensor, "B N R D"]:
    return F.normalize(keys.float(), dim=-1, eps=1e-6)

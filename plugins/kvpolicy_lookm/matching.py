"""The kept key that is most similar to each evicted key."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from kvpolicy_kernels import rows_per_block, spans


class Match(NamedTuple):
    """For every evicted key: the slot of the most similar kept key, and their cosine."""

    slots: Int64[Tensor, "B N E"]
    similarity: Float32[Tensor, "B N E"]


def nearest_kept(
    evicted: Float[Tensor, "B N E D"],
    kept: Float[Tensor, "B N K D"],
    is_kept: Bool[Tensor, "B N K"],
) -> Match:
    """Match evicted keys to kept ones by cosine, in blocks of bounded size.

    >>> kept = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    >>> match = nearest_kept(torch.tensor([[[[3.0, 4.0]]]]), kept, torch.ones(1, 1, 2).bool())
    >>> match.slots, match.similarity
    (tensor([[[1]]]), tensor([[[0.8000]]]))
    """
    directions = _directions(kept).mT
    rows = rows_per_block(is_kept.numel(), kept.device)
    found = []
    for block in spans(0, evicted.shape[2], rows):
        cosines = _directions(evicted[:, :, block]) @ directions
        found.append(cosines.masked_fill_(~is_kept[:, :, None], -torch.inf).max(-1))
    return Match(
        slots=torch.cat([each.indices for each in found], -1),
        # A head that keeps nothing has no cosine, and its maximum is -inf.
        similarity=torch.cat([each.values for each in found], -1).clamp(min=-1.0),
    )


def _directions(keys: Float[Tensor, "B N R D"]) -> Float32[Tensor, "B N R D"]:
    return F.normalize(keys.float(), dim=-1, eps=1e-6)

"""The most similar keys in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int, Int32
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import rows_per_block, spans
from kvpolicy_kernels.gather_kv.reference import gather_kv

LEAST = 1e-6
"""The least norm of a key; a key of zeros has no direction."""


class NearestKeys(NamedTuple):
    """For every row: the slot of the most similar key, and their cosine."""

    slots: Int32[Tensor, "B N E"]
    cosines: Float32[Tensor, "B N E"]


@torch.no_grad()
def nearest_keys(
    keys: Float[Tensor, "B N S D"],
    rows: Int[Tensor, "B N E"],
    others: Float[Tensor, "B N K D"],
    is_other: Bool[Tensor, "B N K"] | None,
) -> NearestKeys:
    """Match rows by cosine, in blocks of bounded size."""
    slots = torch.zeros_like(rows, dtype=torch.int32)
    if not others.shape[2]:
        return NearestKeys(slots, slots.new_full(slots.shape, -1.0, dtype=torch.float32))
    directions = _directions(others).mT
    cosines = slots.new_zeros(slots.shape, dtype=torch.float32)
    # A block of rows, in float32, too; and its cosines.
    floats = max(8 * keys[:, :, 0].numel(), others[..., 0].numel())
    for block in spans(0, rows.shape[2], rows_per_block(floats, keys.device)):
        own = rows[:, :, block]
        some, _ = gather_kv(keys, keys[..., :1], own.where(own < keys.shape[2], 0))
        found = _directions(some) @ directions
        if is_other is not None:
            found = found.masked_fill_(~is_other[:, :, None], -torch.inf)
        best = found.max(-1)
        cosines[:, :, block], slots[:, :, block] = best
    # A head that keeps nothing has no cosine, and its maximum is -inf.
    return NearestKeys(slots, cosines.clamp_(min=-1.0))


def _directions(keys: Float[Tensor, "B N R D"]) -> Float32[Tensor, "B N R D"]:
    return F.normalize(keys.float(), dim=-1, eps=LEAST)

"""Selection by threshold in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from kvpolicy_kernels.common.pytorch.largest import largest, without_nan


@torch.no_grad()
def select(
    scores: Float[Tensor, "B N S"], budgets: Int[Tensor, "B N"], *, count: int | None = None
) -> Int64[Tensor, "B N K"]:
    """Mark the scores above each head's budget-th score, then the first ones equal to it."""
    if count is None:
        count = int(budgets.max()) if budgets.numel() else 0
    positions = scores.shape[-1]
    most = min(count, positions)
    if most == 0 or budgets.numel() == 0:
        return torch.full(
            (*budgets.shape, count), positions, dtype=torch.int64, device=scores.device
        )
    # Without a wait for the GPU.
    room = budgets.to(scores.device, torch.int64, non_blocking=True).clamp(0, most)[..., None]
    if scores.device.type == "cpu":
        return _on_cpu(without_nan(scores), room, count)
    scores = scores.masked_fill(scores.isnan(), -torch.inf)
    threshold = scores.topk(most).values.gather(-1, (room - 1).clamp_min(0))
    above = scores > threshold
    equal = scores == threshold
    first = equal.cumsum(-1) <= room - above.sum(-1, keepdim=True)
    return _positions((above | (equal & first)) & (room > 0), count)


def _on_cpu(
    scores: Float[Tensor, "B N S"], room: Int64[Tensor, "B N 1"], count: int
) -> Int64[Tensor, "B N K"]:
    """Mark by partition, or by sorting if budgets differ, for all heads at once."""
    counts = room.numpy()
    return _listed(largest(scores, np.maximum(counts, 1)) & (counts > 0), room, count)


@torch.no_grad()
def unselected(rows: Int64[Tensor, "B N K"], length: int, count: int) -> Int64[Tensor, "B N E"]:
    """Mark what is not among the rows."""
    left = torch.ones(*rows.shape[:2], length + 1, dtype=torch.bool, device=rows.device)
    left = left.scatter_(-1, rows.clamp(max=length), False)[..., :length]
    if rows.device.type == "cpu":
        return _listed(left.numpy(), left.sum(-1, keepdim=True), count)
    return _positions(left, count)


def _listed(
    chosen: npt.NDArray[np.bool_], counts: Int64[Tensor, "B N 1"], count: int
) -> Int64[Tensor, "B N K"]:
    """Return the chosen positions, `counts` of each head, ascending."""
    positions = chosen.shape[-1]
    found = torch.from_numpy(np.flatnonzero(chosen)) % max(1, positions)
    result = counts.new_full((*counts.shape[:2], count), positions)
    return result.masked_scatter_(torch.arange(count, device="cpu") < counts, found)


def _positions(chosen: Bool[Tensor, "B N S"], count: int) -> Int64[Tensor, "B N K"]:
    """Return the chosen positions, ascending; `nonzero` would wait for the GPU to count them."""
    positions = chosen.shape[-1]
    place = torch.where(chosen, chosen.cumsum(-1) - 1, count)
    source = torch.arange(positions, device=chosen.device).expand_as(place)
    result = place.new_full((*place.shape[:-1], count + 1), positions)
    return result.scatter_(-1, place, source)[..., :count]

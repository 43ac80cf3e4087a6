"""Sums of chosen rows in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import rows_per_block, spans
from kvpolicy_kernels.common.pytorch.sums import sums_dtype
from kvpolicy_kernels.gather_kv.reference import gather_kv


def summed_rows(
    tables: Sequence[Float[Tensor, "B N S _"]],
    rows: Int[Tensor, "B N E"],
    slots: Int[Tensor, "B N E"],
    shares: Float[Tensor, "B N E"],
    *,
    count: int,
    ascending: bool = False,
) -> list[Float[Tensor, "B N K _"]]:
    """Gather some rows at a time, and add them where they belong."""
    return [_summed(table, rows, slots, shares, count) for table in tables]


def _summed(
    table: Float[Tensor, "B N S D"],
    rows: Int[Tensor, "B N E"],
    slots: Int[Tensor, "B N E"],
    shares: Float[Tensor, "B N E"],
    count: int,
) -> Float[Tensor, "B N K D"]:
    length, dtype = table.shape[2], sums_dtype(table.device)
    sums = torch.zeros(*rows.shape[:2], count, table.shape[3], dtype=dtype, device=table.device)
    # A block, and two more in float64.
    step = rows_per_block(8 * table[:, :, 0].numel(), table.device)
    for block in spans(0, rows.shape[2], step):
        own = rows[:, :, block]
        some, _ = gather_kv(table, table[..., :1], own.where(own < length, 0))
        parts = some.to(dtype) * shares[:, :, block, None]
        sums = sums.scatter_add(2, slots[:, :, block, None].long().expand_as(parts), parts)
    return sums

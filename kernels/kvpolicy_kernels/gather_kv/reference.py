"""Gathering and moving rows in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

from math import gcd

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy_kernels.checks import require
from kvpolicy_kernels.common.pytorch.blocks import rows_per_block, spans
from kvpolicy_kernels.gather_kv.runs import move_runs, runs_to_move


def gather_kv(
    keys: Float[Tensor, "B N S D"], values: Float[Tensor, "B N S Dv"], rows: Int[Tensor, "B N K"]
) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]]:
    """Gather the rows of keys and of values."""
    positions = keys.shape[2]
    if rows.numel():
        # The flat table of `_gather` would return a row of the next head.
        first, last = (int(row) for row in rows.aminmax())
        if first < 0 or last >= positions:
            raise IndexError(f"rows {first} .. {last} are not all among the {positions} positions")
    return _gather(keys, rows), _gather(values, rows)


def compact_in_place(
    keys: Float[Tensor, "B N S D"], values: Float[Tensor, "B N S Dv"], rows: Int[Tensor, "B N K"]
) -> None:
    """Move rows forward, block by block; on a CPU run by run, where few rows are missing.

    Ascending rows never lie before their new places. So no block reads a place that an earlier
    block has written.
    """
    if rows.numel() == 0:
        return
    rows = rows.to(torch.int64)
    if keys.device.type == "cpu" and (runs := runs_to_move(rows, keys.shape[2])) is not None:
        for table in (keys, values):
            move_runs(table, runs)
        return
    filler = rows >= keys.shape[2]
    ascends = (rows.diff(dim=-1) > 0) | filler[..., 1:]
    require(
        bool(ascends.all()) and bool((rows[..., 0] >= 0).all()),
        "the rows of each head must ascend strictly, from 0 or above",
    )
    place = torch.arange(rows.shape[2], device=rows.device)
    rows = rows.where(~filler, place)
    moves = (rows != place).any(0).any(0).nonzero()
    if moves.numel() == 0:
        return
    for table in (keys, values):
        block = rows_per_block(table[:, :, 0].numel(), table.device)
        for k in spans(int(moves[0]), rows.shape[2], block):
            table[:, :, k] = _gather(table, rows[:, :, k])


def _gather(
    table: Float[Tensor, "B N S D"], rows: Int[Tensor, "B N K"]
) -> Float[Tensor, "B N K D"]:
    """Gather by one flat `index_select`; `torch.gather` with an expanded index is much slower."""
    batch, heads, _, dim = table.shape
    if rows.numel() == 0:
        return table.new_empty(*rows.shape, dim)
    if table.stride(-1) != 1:
        picked = [
            table[b, n].index_select(0, rows[b, n]) for b in range(batch) for n in range(heads)
        ]
        return torch.stack(picked).view(*rows.shape, dim)
    # Any layout with whole rows is one flat table: a row starts every `unit` numbers. Such rows
    # overlap, but those that are read do not.
    strides = table.stride()[:3]
    unit = gcd(*strides) or 1
    of_batch, of_head, of_row = (stride // unit for stride in strides)
    last = sum((size - 1) * stride for size, stride in zip(table.shape, strides, strict=False))
    flat = table.as_strided((last // unit + 1, dim), (unit, 1))
    device = table.device
    sequence = torch.arange(batch, device=device)[:, None, None] * of_batch
    head = torch.arange(heads, device=device)[:, None] * of_head
    index = sequence + head + rows.to(torch.int64) * of_row
    return flat.index_select(0, index.flatten()).view(*rows.shape, dim)

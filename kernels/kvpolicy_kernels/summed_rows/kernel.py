"""The Triton kernel: a program adds up the rows of one slot, in their order."""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy_kernels.common.pytorch.sums import sums_dtype
from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.common.triton.search import first_of

BLOCK_NUMBERS = 1024
"""Numbers of the rows that a program adds at once, in float64."""


def unsupported(*tensors: Tensor) -> str | None:
    """Return why the kernel cannot take these tables, rows, slots and shares; None if it can."""
    return launch.refusal(*tensors[:-3]) or launch.refusal(*tensors, largest_dim=2**30)


@triton.jit
def _summed_rows_kernel(
    table, rows, ordered, order, shares, sums,
    N, S, E, K, STEPS,
    table_b, table_n, table_s, table_d,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, FLOAT: tl.constexpr,
):  # fmt: skip
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    b, n = head // N, head % N
    ordered += head * E
    start = first_of(ordered, slot, E, STEPS)
    stop = first_of(ordered, slot + 1, E, STEPS)
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    total = tl.zeros([BLOCK_D], FLOAT)
    for first in range(start, stop, BLOCK_E):
        e = first + tl.arange(0, BLOCK_E)
        inside = e < stop
        place = head * E + e
        if order is not None:
            place = head * E + tl.load(order + place, mask=inside, other=0)
        row = tl.load(rows + place, mask=inside, other=S).to(tl.int64)
        share = tl.load(shares + place, mask=inside, other=0).to(FLOAT)
        readable = inside & (row >= 0) & (row < S)
        source = table + b * table_b + n * table_n + row[:, None] * table_s + d[None, :] * table_d
        some = tl.load(source, mask=readable[:, None] & (d < D)[None, :], other=0)
        total += tl.sum(some.to(tl.float32).to(FLOAT) * share[:, None], 0)
    tl.store(sums + (head * K + slot) * D + d, total, mask=d < D)


def summed_rows(
    tables: Sequence[Float[Tensor, "B N S _"]],
    rows: Int[Tensor, "B N E"],
    slots: Int[Tensor, "B N E"],
    shares: Float[Tensor, "B N E"],
    *,
    count: int,
    ascending: bool = False,
) -> list[Float[Tensor, "B N K _"]]:
    """Bring the rows into the order of their slots, and add up each table in one launch."""
    slots, order = in_order(slots, ascending=ascending)
    rows, shares = rows.contiguous(), shares.contiguous()
    return [_summed(table, rows, slots, order, shares, count) for table in tables]


def in_order(
    slots: Int[Tensor, "B N E"], *, ascending: bool = False
) -> tuple[Int[Tensor, "B N E"], Int[Tensor, "B N E"] | None]:
    """Return the slots in ascending order, and where each was; None if they ascend already."""
    if ascending or slots.shape[-1] == 1:
        return slots.contiguous(), None
    slots, order = slots.sort(dim=-1, stable=True)
    # Half the memory: a place fits into 32 bits.
    return slots, order.int()


def _summed(
    table: Float[Tensor, "B N S D"],
    rows: Int[Tensor, "B N E"],
    ordered: Int[Tensor, "B N E"],
    order: Int[Tensor, "B N E"] | None,
    shares: Float[Tensor, "B N E"],
    count: int,
) -> Float[Tensor, "B N K D"]:
    batch, heads, positions, dim = table.shape
    dtype = sums_dtype(table.device)
    sums = torch.empty(batch, heads, count, dim, dtype=dtype, device=table.device)
    if sums.numel() == 0:
        return sums
    block = triton.next_power_of_2(dim)
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(table):
        _summed_rows_kernel[(count, batch * heads)](
            table, rows, ordered, order, shares, sums,
            heads, positions, rows.shape[2], count, rows.shape[2].bit_length(), *table.stride(),
            D=dim, BLOCK_D=block, BLOCK_E=max(1, BLOCK_NUMBERS // block),
            FLOAT=tl.float64 if dtype == torch.float64 else tl.float32,
        )  # fmt: skip
    return sums

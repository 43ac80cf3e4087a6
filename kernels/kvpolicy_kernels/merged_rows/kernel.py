"""The Triton kernel: a program merges the rows of one slot, in their order."""

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
from kvpolicy_kernels.summed_rows.kernel import in_order

BLOCK_NUMBERS = 512
"""Numbers of the rows that a program adds at once, in float64."""
WARPS = 2
"""With these two no variant spills registers."""


def unsupported(*tensors: Tensor) -> str | None:
    """Return why the kernel cannot take these tensors; None if it can."""
    tables = [tensor for tensor in tensors if tensor.dim() == 4]
    return launch.refusal(*tables) or launch.refusal(*tensors, largest_dim=2**30)


@triton.jit
def _merged_rows_kernel(
    kept, table, rows, ordered, order, shares, counts, merged, of_all, repeated, counted,
    N, S, E, K, STEPS,
    kept_b, kept_n, kept_k, kept_d,
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
    shared = tl.zeros([], FLOAT)
    number = tl.zeros([], FLOAT)
    for first in range(start, stop, BLOCK_E):
        e = first + tl.arange(0, BLOCK_E)
        inside = e < stop
        place = head * E + e
        if order is not None:
            place = head * E + tl.load(order + place, mask=inside, other=0)
        row = tl.load(rows + place, mask=inside, other=S).to(tl.int64)
        readable = inside & (row >= 0) & (row < S)
        source = table + b * table_b + n * table_n + row[:, None] * table_s + d[None, :] * table_d
        some = tl.load(source, mask=readable[:, None] & (d < D)[None, :], other=0)
        some = some.to(tl.float32).to(FLOAT)
        if shares is None:
            total += tl.sum(some, 0)
            shared += tl.sum(readable.to(FLOAT), 0)
        else:
            share = tl.load(shares + place, mask=readable, other=0).to(FLOAT)
            total += tl.sum(some * share[:, None], 0)
            shared += tl.sum(share, 0)
        if counts is not None:
            number += tl.sum(tl.load(counts + place, mask=readable, other=0).to(FLOAT), 0)
    if shares is None:
        total *= of_all
        shared *= of_all
    if counts is None:
        number = shared * counted
    x = kept + b * kept_b + n * kept_n + slot * kept_k + d * kept_d
    x = tl.load(x, mask=d < D, other=0).to(tl.float32).to(FLOAT)
    mean = (x * (1 + repeated * shared) + total) / (1 + number)
    tl.store(merged + (head * K + slot) * D + d, mean.to(tl.float32), mask=d < D)


def merged_rows(
    kept: Sequence[Float[Tensor, "B N K _"]],
    tables: Sequence[Float[Tensor, "B N S _"]],
    rows: Int[Tensor, "B N E"],
    slots: Int[Tensor, "B N E"],
    shares: Float[Tensor, "B N E"] | float,
    *,
    repeated: float,
    counted: Float[Tensor, "B N E"] | float,
) -> list[Float[Tensor, "B N K _"]]:
    """Bring the rows into the order of their slots, and merge each table in one launch."""
    ordered, order = in_order(slots)
    rows = rows.contiguous()
    numbers = shares, counted
    tensors = [each.contiguous() if isinstance(each, Tensor) else None for each in numbers]
    scalars = [0.0 if isinstance(each, Tensor) else float(each) for each in numbers]
    return [
        _merged(*each, rows, (ordered, order, *tensors), (scalars[0], float(repeated), scalars[1]))
        for each in zip(kept, tables, strict=True)
    ]


def _merged(
    kept: Float[Tensor, "B N K D"],
    table: Float[Tensor, "B N S D"],
    rows: Int[Tensor, "B N E"],
    of_rows: tuple[Tensor | None, ...],
    scalars: tuple[float, float, float],
) -> Float[Tensor, "B N K D"]:
    batch, heads, count, dim = kept.shape
    dtype = sums_dtype(table.device)
    # The interpreter truncates where a GPU rounds: round in PyTorch.
    stored = torch.float32 if launch.INTERPRETED else kept.dtype
    merged = torch.empty(kept.shape, dtype=stored, device=kept.device)
    if merged.numel() == 0:
        return merged.to(kept.dtype)
    block, chosen = triton.next_power_of_2(dim), rows.shape[2]
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(table):
        _merged_rows_kernel[(count, batch * heads)](
            kept, table, rows, *of_rows, merged, *scalars,
            heads, table.shape[2], chosen, count, chosen.bit_length(),
            *kept.stride(), *table.stride(),
            D=dim, BLOCK_D=block, BLOCK_E=max(1, BLOCK_NUMBERS // block),
            FLOAT=tl.float64 if dtype == torch.float64 else tl.float32, num_warps=WARPS,
        )  # fmt: skip
    return merged.to(kept.dtype)

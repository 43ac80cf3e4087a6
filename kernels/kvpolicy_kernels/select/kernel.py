"""The Triton kernels: one finds the best positions by radix, one lists those that are left."""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int, Int64
from torch import Tensor

from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.common.triton.largest import (
    BLOCK_S,
    STAGES,
    WARPS,
    read,
    taken,
    threshold_of,
)
from kvpolicy_kernels.common.triton.search import first_of

BLOCK_LEFT = 256
"""Positions that a program looks for among the rows."""


def unsupported(*tensors: Tensor) -> str | None:
    """Return why a kernel cannot take these scores and budgets, or rows; None if it can."""
    return launch.refusal(*tensors, largest_dim=2**30)


@triton.jit(do_not_specialize=["of_all"])
def _select_kernel(
    scores, budgets, kept, of_all,
    N, S, K,
    scores_b, scores_n, scores_s,
    budgets_b, budgets_n,
    BLOCK_S: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    b, n = head // N, head % N
    if budgets is None:
        budget = of_all.to(tl.int64)
    else:
        budget = tl.load(budgets + b * budgets_b + n * budgets_n).to(tl.int64)
    budget = tl.maximum(tl.minimum(budget, tl.minimum(S, K)), 0).to(tl.int32)
    row = scores + b * scores_b + n * scores_n
    kept += head * K
    threshold, room = threshold_of(row, scores_s, S, budget, BLOCK_S, STAGES)
    found = tl.full((), 0, tl.int32)
    for start in tl.range(0, S, BLOCK_S, num_stages=STAGES):
        s, inside, numbers = read(row, scores_s, start, S, BLOCK_S)
        wins, room = taken(numbers, inside, threshold, room)
        place = found + tl.cumsum(wins.to(tl.int32), 0) - 1
        tl.store(kept + place, s.to(tl.int64), mask=wins)
        found += tl.sum(wins.to(tl.int32), 0)
    for start in range(budget, K, BLOCK_S):
        k = start + tl.arange(0, BLOCK_S)
        tl.store(kept + k, tl.zeros_like(k).to(tl.int64) + S, mask=k < K)


def select(
    scores: Float[Tensor, "B N S"], budgets: Int[Tensor, "B N"], *, count: int | None = None
) -> Int64[Tensor, "B N K"]:
    """Select in one launch, which reads each head's scores five times, from the GPU's cache.

    A budget of the CPU that all heads have is an argument of the launch, and not sent there.
    """
    if count is None:
        count = int(budgets.max()) if budgets.numel() else 0
    of_all = 0
    of_heads: Tensor | None = budgets
    if budgets.device.type == "cpu" and budgets.numel():
        of_all = int(budgets.flatten()[0])
        alike = bool((budgets == of_all).all())
        of_heads = None if alike else budgets.to(scores.device, torch.int64, non_blocking=True)
    batch, heads, positions = scores.shape
    kept = torch.empty(batch, heads, count, dtype=torch.int64, device=scores.device)
    if kept.numel() == 0:
        return kept
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(scores):
        _select_kernel[(batch * heads,)](
            scores, of_heads, kept, of_all, heads, positions, count, *scores.stride(),
            *(of_heads.stride() if of_heads is not None else (0, 0)),
            BLOCK_S=BLOCK_S, STAGES=STAGES, num_warps=WARPS,
        )  # fmt: skip
    return kept


@triton.jit
def _unselected_kernel(rows, left, S, K, E, STEPS, BLOCK_S: tl.constexpr):
    head = tl.program_id(0).to(tl.int64)
    s = tl.program_id(1).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    rows += head * K
    left += head * E
    kept = first_of(rows, tl.zeros_like(s) + S, K, STEPS)
    before = first_of(rows, s, K, STEPS)
    is_row = tl.load(rows + before, mask=before < K, other=-1) == s
    place = s - before
    tl.store(left + place, s, mask=(s < S) & (is_row == 0) & (place < E))
    tl.store(left + s, tl.zeros_like(s) + S, mask=(s >= S - kept) & (s < E))


def unselected(rows: Int64[Tensor, "B N K"], length: int, count: int) -> Int64[Tensor, "B N E"]:
    """Search for all positions among the rows at once, in one launch."""
    batch, heads, kept = rows.shape
    left = torch.empty(batch, heads, count, dtype=torch.int64, device=rows.device)
    if left.numel() == 0:
        return left
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(rows):
        _unselected_kernel[(batch * heads, triton.cdiv(max(length, count), BLOCK_LEFT))](
            rows.contiguous(), left, length, kept, count, kept.bit_length(), BLOCK_S=BLOCK_LEFT
        )
    return left

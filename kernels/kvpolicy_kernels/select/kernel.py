"""The Triton kernel: one program finds the best positions of one head by radix."""

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


def unsupported(*tensors: Tensor) -> str | None:
    """Return why the kernel cannot take these scores and budgets; None if it can."""
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

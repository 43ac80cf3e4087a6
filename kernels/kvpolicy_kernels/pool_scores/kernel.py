"""The Triton kernel: a program reads a head's width and shift, and pools a block of its scores."""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.pool_scores.reference import require_odd

BLOCK_S = 1024


def unsupported(scores: Tensor, *options: Tensor) -> str | None:
    """Return why the kernel cannot take these scores, widths and shifts; None if it can."""
    if scores.dtype != torch.float32:
        return f"the kernel pools float32, not {scores.dtype}"
    return launch.refusal(scores, *options, largest_dim=2**30)


@triton.jit
def _of_head(option, b, n, stride_b, stride_n, EACH: tl.constexpr):
    if EACH:
        value = tl.load(option + b * stride_b + n * stride_n).to(tl.int64)
    else:
        value = option.to(tl.int64)
    return value


@triton.jit(do_not_specialize=["widths", "shifts"])
def _pool_scores_kernel(
    scores, widths, shifts, pooled,
    H, S,
    scores_b, scores_h, scores_s,
    widths_b, widths_h, shifts_b, shifts_h,
    EACH_WIDTH: tl.constexpr, EACH_SHIFT: tl.constexpr,
    AVERAGE: tl.constexpr, REPLICATE: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    b, h = head // H, head % H
    half = tl.maximum(_of_head(widths, b, h, widths_b, widths_h, EACH_WIDTH), 0) // 2
    first = _of_head(shifts, b, h, shifts_b, shifts_h, EACH_SHIFT) - half
    # Farther away there is only the edge. Within these bounds, positions fit into 32 bits.
    first = tl.minimum(tl.maximum(first, -(2**30)), 2**30).to(tl.int32)
    width = (2 * half + 1).to(tl.int32)
    row = scores + b * scores_b + h * scores_h
    j = tl.program_id(1) * BLOCK_S + tl.arange(0, BLOCK_S)
    outside = 0.0 if AVERAGE else float("-inf")
    total = tl.full((BLOCK_S,), outside, tl.float32)
    for t in range(width):
        u = j + (first + t)
        near = tl.minimum(tl.maximum(u, 0), S - 1)
        reached = j < S if REPLICATE else (j < S) & (u == near)
        score = tl.load(row + near.to(tl.int64) * scores_s, mask=reached, other=outside)
        if AVERAGE:
            total += score
        else:
            total = tl.maximum(total, score, propagate_nan=tl.PropagateNan.ALL)
    if AVERAGE:
        total = tl.div_rn(total, width.to(tl.float32))
    tl.store(pooled + head * S + j, total, mask=j < S)


def pool_scores(
    scores: Float[Tensor, "B H S"],
    widths: Int[Tensor, "B H"] | int,
    shifts: Int[Tensor, "B H"] | int = 0,
    *,
    mode: Literal["avg", "max"] = "avg",
    edges: Literal["replicate", "zero"] = "replicate",
) -> Float[Tensor, "B H S"]:
    """Pool in one launch. Each window is summed anew, so a huge score stays in its windows."""
    if isinstance(widths, int):
        require_odd(widths)
    pooled = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    if pooled.numel() == 0:
        return pooled
    batch, heads, positions = scores.shape
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(scores):
        _pool_scores_kernel[(batch * heads, triton.cdiv(positions, BLOCK_S))](
            scores, widths, shifts, pooled, heads, positions, *scores.stride(),
            *(widths.stride() if isinstance(widths, Tensor) else (0, 0)),
            *(shifts.stride() if isinstance(shifts, Tensor) else (0, 0)),
            EACH_WIDTH=isinstance(widths, Tensor), EACH_SHIFT=isinstance(shifts, Tensor),
            AVERAGE=mode == "avg", REPLICATE=edges == "replicate", BLOCK_S=BLOCK_S,
        )  # fmt: skip
    return pooled

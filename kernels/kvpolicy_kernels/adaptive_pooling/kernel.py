"""The Triton kernels: one program has one head's drift, or many heads' widths and shifts."""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float64, Int64
from torch import Tensor

BLOCK = 128
"""Heads of a program."""

MOST_QUERIES = 2**16
"""Queries of the largest window that a program holds."""

WHOLE = tl.constexpr(1.5 * 2.0**52)
"""Added to a float64 number and taken away again, it rounds to a whole number, ties to even."""


def unsupported(numbers: Tensor) -> str | None:
    """Return why the kernels cannot take these means or drifts; None if they can."""
    if numbers.dtype != torch.float64:
        return f"the kernel takes float64, not {numbers.dtype}"
    if numbers.dim() == 3 and numbers.shape[-1] > MOST_QUERIES:
        return f"the kernel takes at most {MOST_QUERIES} queries, these are {numbers.shape[-1]}"
    return None


@triton.jit(do_not_specialize=["count"])
def _drift_kernel(
    means, drift, count,
    H, W,
    means_b, means_h, means_w,
    BLOCK_W: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    w = tl.arange(0, BLOCK_W)
    row = means + head // H * means_b + head % H * means_h
    mean = tl.load(row + w.to(tl.int64) * means_w, mask=w < W, other=0.0)
    whole = tl.full((), WHOLE, tl.float64)
    sums = (mean * count.to(tl.float64) + whole) - whole
    front = tl.sum(tl.where(w < W // 2, sums, 0.0), 0) / (W // 2).to(tl.float64)
    rear = tl.sum(tl.where(w < W // 2, 0.0, sums), 0) / (W - W // 2).to(tl.float64)
    tl.store(drift + head, (front - rear) / count.to(tl.float64))


@triton.jit(do_not_specialize=["width"])
def _pooling_kernel(
    drift, widths, shifts, width,
    HEADS, H,
    drift_b, drift_h,
    SCALE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = head < HEADS
    of_head = tl.load(drift + head // H * drift_b + head % H * drift_h, mask=exists, other=0.0)
    # A plain number would be rounded to float32.
    steps = of_head / tl.full((), SCALE, tl.float64)
    reached = 2 * tl.abs(steps.to(tl.int64)) + 1
    tl.store(widths + head, tl.maximum(reached, width.to(tl.int64)), mask=exists)
    shift = tl.floor(steps).to(tl.int64) + (of_head <= 0).to(tl.int64)
    tl.store(shifts + head, shift, mask=exists)


def mean_drift(means: Float64[Tensor, "B H W"], count: int) -> Float64[Tensor, "B H"]:
    """Compute each head's drift in one launch."""
    batch, heads, window = means.shape
    drift = torch.empty(batch, heads, dtype=torch.float64, device=means.device)
    if drift.numel() == 0:
        return drift
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(means):
        _drift_kernel[(batch * heads,)](
            means, drift, count, heads, window, *means.stride(),
            BLOCK_W=triton.next_power_of_2(window),
        )  # fmt: skip
    return drift


def adaptive_pooling(
    drift: Float64[Tensor, "B H"], *, width: int, scale: float
) -> tuple[Int64[Tensor, "B H"], Int64[Tensor, "B H"]]:
    """Compute all widths and shifts in one launch."""
    widths = torch.empty(drift.shape, dtype=torch.int64, device=drift.device)
    shifts = torch.empty_like(widths)
    if drift.numel() == 0:
        return widths, shifts
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(drift):
        _pooling_kernel[(triton.cdiv(drift.numel(), BLOCK),)](
            drift, widths, shifts, width, drift.numel(), drift.shape[1], *drift.stride(),
            SCALE=scale, BLOCK=BLOCK,
        )  # fmt: skip
    return widths, shifts

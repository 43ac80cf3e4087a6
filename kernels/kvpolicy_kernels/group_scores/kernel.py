"""The Triton kernels: a program has some positions of a key/value head."""

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

BLOCK_S = 1024
NEVER = 2**31 - 1
"""A position that no token has."""


def unsupported(scores: Tensor, *positions: Tensor) -> str | None:
    """Return why the kernels cannot take these scores and positions; None if they can."""
    return launch.refusal(scores, *positions, largest_dim=2**30)


@triton.jit
def _group_kernel(
    scores, grouped,
    N, G, S,
    scores_b, scores_h, scores_s,
    HOW: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    b, n = head // N, head % N
    s = tl.program_id(1).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    row = scores + b * scores_b + n * G * scores_h + s * scores_s
    largest = tl.full([BLOCK_S], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_S], tl.float64)
    for g in range(G):
        score = tl.load(row + g * scores_h, mask=s < S, other=0).to(tl.float32)
        if HOW == "max":
            largest = tl.maximum(largest, score, propagate_nan=tl.PropagateNan.ALL)
        else:
            total += score.to(tl.float64)
    if HOW == "mean":
        total = total / G
    found = largest if HOW == "max" else total.to(tl.float32)
    tl.store(grouped + head * S + s, found, mask=s < S)


@triton.jit(do_not_specialize=["before", "since"])
def _protect_kernel(
    scores, positions, protected, before, since,
    N, S,
    scores_b, scores_n, scores_s,
    positions_b, positions_n, positions_s,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    b, n = head // N, head % N
    s = tl.program_id(1).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    score = tl.load(scores + b * scores_b + n * scores_n + s * scores_s, mask=s < S, other=0)
    place = positions + b * positions_b + n * positions_n + s * positions_s
    position = tl.load(place, mask=s < S, other=0)
    kept = ((position < before) & (before > 0)) | (position >= since)
    tl.store(protected + head * S + s, tl.where(kept, float("inf"), score), mask=s < S)


def group_scores(
    scores: Float[Tensor, "B H S"], kv_heads: int, how: Literal["mean", "max", "sum"]
) -> Float[Tensor, "B N S"]:
    """Reduce in one launch."""
    batch, heads, positions = scores.shape
    shape = (batch, kv_heads, positions)
    # The interpreter truncates where a GPU rounds: round in PyTorch.
    dtype = torch.float32 if launch.INTERPRETED else scores.dtype
    grouped = torch.empty(shape, dtype=dtype, device=scores.device)
    if grouped.numel() == 0:
        return grouped.to(scores.dtype)
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(scores):
        _group_kernel[(batch * kv_heads, triton.cdiv(positions, BLOCK_S))](
            scores, grouped, kv_heads, heads // kv_heads, positions, *scores.stride(),
            HOW=how, BLOCK_S=BLOCK_S,
        )  # fmt: skip
    return grouped.to(scores.dtype)


def protect_scores(
    scores: Float[Tensor, "B N S"],
    positions: Int[Tensor, "B N S"],
    *,
    before: int = 0,
    since: int | None = None,
) -> Float[Tensor, "B N S"]:
    """Compare and fill in one launch."""
    batch, heads, length = scores.shape
    protected = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    if protected.numel() == 0:
        return protected
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(scores):
        _protect_kernel[(batch * heads, triton.cdiv(length, BLOCK_S))](
            scores, positions, protected, before, NEVER if since is None else since, heads, length,
            *scores.stride(), *positions.stride(), BLOCK_S=BLOCK_S,
        )  # fmt: skip
    return protected

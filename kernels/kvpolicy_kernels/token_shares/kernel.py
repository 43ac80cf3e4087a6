"""The Triton kernels: the means of all heads, then the choice of one sequence by a program."""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
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
from kvpolicy_kernels.token_shares.reference import TokenShares

BLOCK_MEANS = 512
"""Positions whose means a program computes."""
LEAST = tl.constexpr(torch.finfo(torch.float32).tiny)


def unsupported(scores: Tensor) -> str | None:
    """Return why the kernels cannot take these scores; None if they can."""
    return launch.refusal(scores, largest_dim=2**30)


@triton.jit
def _means_kernel(scores, means, H, S, scores_b, scores_h, scores_s, BLOCK_S: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    s = tl.program_id(1).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    row = scores + b * scores_b + s * scores_s
    total = tl.zeros([BLOCK_S], tl.float32)
    for _ in range(H):
        total += tl.load(row, mask=s < S, other=0).to(tl.float32)
        row += scores_h
    tl.store(means + b * S + s, total / H, mask=s < S)


@triton.jit
def _shares_kernel(
    means, places, shares, FIRST, S, K, BLOCK_S: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    """Replace the means by their squares, choose among these, and divide the chosen by their sum.

    A barrier stands between what a thread writes and what another one reads.
    """
    b = tl.program_id(0).to(tl.int64)
    means, places, shares = means + b * S, places + b * K, shares + b * K
    lane = tl.arange(0, BLOCK_S)
    largest = tl.full([BLOCK_S], float("-inf"), tl.float32)
    for start in range(0, S, BLOCK_S):
        s = start + lane
        largest = tl.maximum(largest, tl.load(means + s, mask=s < S, other=float("-inf")))
    divisor = tl.maximum(tl.max(largest, 0), LEAST)
    for start in range(0, S, BLOCK_S):
        s = start + lane
        ratio = tl.load(means + s, mask=s < S, other=0) / divisor
        tl.store(means + s, ratio * ratio, mask=s < S)
    tl.debug_barrier()
    threshold, room = threshold_of(means, 1, S, K, BLOCK_S, STAGES)
    found, total = tl.full((), 0, tl.int32), tl.full((), 0, tl.float32)
    for start in tl.range(0, S, BLOCK_S, num_stages=STAGES):
        s, inside, numbers = read(means, 1, start, S, BLOCK_S)
        wins, room = taken(numbers, inside, threshold, room)
        place = found + tl.cumsum(wins.to(tl.int32), 0) - 1
        square = tl.load(means + s, mask=wins, other=0)
        tl.store(places + place, s.to(tl.int64) + FIRST, mask=wins)
        tl.store(shares + place, square, mask=wins)
        found += tl.sum(wins.to(tl.int32), 0)
        total += tl.sum(square, 0)
    tl.debug_barrier()
    for start in range(0, K, BLOCK_S):
        k = start + lane
        share = tl.load(shares + k, mask=k < K, other=0) / tl.maximum(total, LEAST)
        tl.store(shares + k, share, mask=k < K)


def token_shares(scores: Float[Tensor, "B H S"], count: int, *, first: int = 0) -> TokenShares:
    """Choose in two launches."""
    scores = scores[..., first:]
    batch, heads, length = scores.shape
    device = scores.device
    means = torch.empty(batch, length, dtype=torch.float32, device=device)
    shares = torch.empty(batch, count, dtype=torch.float32, device=device)
    places = torch.empty(batch, count, dtype=torch.int64, device=device)
    if batch:
        # Triton launches on the current device. This layer may be on another one.
        with torch.cuda.device_of(scores):
            _means_kernel[(batch, triton.cdiv(length, BLOCK_MEANS))](
                scores, means, heads, length, *scores.stride(), BLOCK_S=BLOCK_MEANS
            )
            _shares_kernel[(batch,)](
                means, places, shares, first, length, count,
                BLOCK_S=BLOCK_S, STAGES=STAGES, num_warps=WARPS,
            )  # fmt: skip
    return TokenShares(places, shares.to(scores.dtype))

"""The Triton kernel: a program compares the rows of one partition with those of the next."""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.common.triton.logits import load_rows
from kvpolicy_kernels.partition_deviations.reference import LIMIT

BLOCK_NUMBERS = 4096
"""Numbers of a tile of rows."""


def unsupported(*tensors: Tensor) -> str | None:
    """Return why the kernel cannot take these rows; None if it can."""
    return launch.refusal(*tensors)


@triton.jit
def _deviations_kernel(
    states, found,
    N, LAG, JUDGED,
    states_b, states_n, states_s, states_d, freedom, LIMIT,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    head, part = tl.program_id(1).to(tl.int64), tl.program_id(0).to(tl.int64)
    b, n = head // N, head % N
    own = states + b * states_b + n * states_n + part * LAG * states_s
    after = own + LAG * states_s.to(tl.int64)
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    low = tl.full([BLOCK_D], float("inf"), tl.float32)
    high = tl.full([BLOCK_D], float("-inf"), tl.float32)
    for start in range(0, LAG, BLOCK_L):
        row = start + tl.arange(0, BLOCK_L).to(tl.int64)
        inside = (row < LAG)[:, None] & (d < D)[None, :]
        rows = load_rows(after + row * states_s, row < LAG, d, states_d, D, True)
        low = tl.minimum(low, tl.min(tl.where(inside, rows, float("inf")), 0))
        high = tl.maximum(high, tl.max(tl.where(inside, rows, float("-inf")), 0))
    scale = tl.where(high > low, high - low, float("inf"))
    channel = (d < D)[None, :]
    # Channels that do not exist would make NaN of their infinite bounds.
    low = tl.where(d < D, low, 0.0)
    found += (head * JUDGED + part) * LAG
    for start in range(0, LAG, BLOCK_L):
        row = start + tl.arange(0, BLOCK_L).to(tl.int64)
        rows = load_rows(own + row * states_s, row < LAG, d, states_d, D, True)
        normalised = (rows - low[None, :]) / scale[None, :]
        normalised = tl.where(normalised != normalised, 0.0, normalised)
        normalised = tl.minimum(tl.maximum(normalised, -LIMIT), LIMIT)
        normalised = tl.where(channel, normalised, 0.0)
        centred = normalised - (tl.sum(normalised, 1) / D)[:, None]
        centred = tl.where(channel, centred, 0.0)
        tl.store(found + row, tl.sqrt(tl.sum(centred * centred, 1) / freedom), mask=row < LAG)


def partition_deviations(
    states: Float[Tensor, "B N S D"], lag: int
) -> Float32[Tensor, "B N judged lag"]:
    """Compare all partitions in one launch; no row is copied."""
    batch, heads, positions, dim = states.shape
    judged = max(0, positions // lag - 1)
    found = torch.empty(batch, heads, judged, lag, dtype=torch.float32, device=states.device)
    if found.numel() == 0:
        return found
    block = triton.next_power_of_2(dim)
    rows = max(1, min(triton.next_power_of_2(lag), BLOCK_NUMBERS // block))
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(states):
        _deviations_kernel[(judged, batch * heads)](
            states, found, heads, lag, judged, *states.stride(), float(max(1, dim - 1)), LIMIT,
            D=dim, BLOCK_D=block, BLOCK_L=rows, num_warps=8,
        )  # fmt: skip
    return found

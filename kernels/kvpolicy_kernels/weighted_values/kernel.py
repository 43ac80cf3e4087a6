"""The Triton kernel: programs sum parts of the positions in parallel, then PyTorch the parts."""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.common.triton.logits import load_rows


class SumTile(NamedTuple):
    """How many heads and positions a program multiplies at once, and in which precision."""

    heads: int
    positions: int
    precision: str
    warps: int


def unsupported(*tensors: Tensor) -> str | None:
    """Return why the kernel cannot take these values; None if it can."""
    return launch.refusal(*tensors)


def sum_tile(group: int, exact: bool) -> SumTile:
    """Choose a tile by shape alone.

    Memory limits the sum, not arithmetic. So with values in half precision, attention is multiplied
    as three tf32 products, which keep its digits.
    """
    # Tensor cores multiply at least 16 rows.
    heads = max(16, min(32, triton.next_power_of_2(group)))
    return SumTile(heads, 16, "ieee", 4) if exact else SumTile(heads, 32, "tf32x3", 8)


@triton.jit
def _weighted_values_kernel(
    attention, values, without, partials, N, G, S, GROUP_BLOCKS, SPAN,
    attention_b, attention_h, attention_s,
    values_b, values_n, values_s, values_d, partials_split,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1).to(tl.int64)
    b, n, group_block = place // GROUP_BLOCKS // N, place // GROUP_BLOCKS % N, place % GROUP_BLOCKS
    g = group_block * BLOCK_G + tl.arange(0, BLOCK_G)
    h = n * G + g
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    sums = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    for start in range(split * SPAN, tl.minimum(split * SPAN + SPAN, S), BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        value_rows = values + b * values_b + n * values_n + s * values_s
        block = load_rows(value_rows, s < S, d, values_d, D, True)
        attention_rows = attention + b * attention_b + h * attention_h
        a = load_rows(attention_rows, g < G, s, attention_s, S, True)
        if without is not None:
            left_out = tl.load(without + b * N * G + h, mask=g < G, other=-1)
            a = tl.where(s[None, :] == left_out[:, None], 0.0, a)
        sums = tl.dot(a, block, sums, input_precision=PRECISION)
    rows = partials + split * partials_split + (b * N * G + h) * D
    tl.store(rows[:, None] + d[None, :], sums, mask=(g < G)[:, None] & (d < D)[None, :])


def weighted_values(
    attention: Float[Tensor, "B H S"], values: Float[Tensor, "B N S D"]
) -> Float32[Tensor, "B H D"]:
    """Sum parts of the positions in one launch, then add up the parts."""
    return partial_sums(attention, values).sum(0)


def partial_sums(
    attention: Float[Tensor, "B H S"],
    values: Float[Tensor, "B N S D"],
    *,
    without: Int64[Tensor, "B H 1"] | None = None,
) -> Float32[Tensor, "parts B H D"]:
    """Sum parts of the positions, in one launch; `without` is one of each head that is left out."""
    batch, heads, positions = attention.shape
    kv_heads, dim = values.shape[1], values.shape[-1]
    group = heads // kv_heads
    tile = sum_tile(group, exact=launch.product_precision(values) == "ieee")
    group_blocks, blocks = triton.cdiv(group, tile.heads), triton.cdiv(positions, tile.positions)
    places = kv_heads * group_blocks
    # The batch size must not count: a sequence's sums may not depend on the rest of the batch.
    span = tile.positions * triton.cdiv(blocks, launch.splits(places, blocks))
    # Without positions the sum is zero; one split writes it.
    splits = max(1, triton.cdiv(positions, max(1, span)))
    partials = torch.empty(splits, batch, heads, dim, dtype=torch.float32, device=values.device)
    with torch.cuda.device_of(values):
        _weighted_values_kernel[(splits, batch * places)](
            attention, values, without, partials, kv_heads, group, positions, group_blocks, span,
            *attention.stride(), *values.stride(), partials.stride(0),
            D=dim, BLOCK_D=max(16, triton.next_power_of_2(dim)),
            BLOCK_G=tile.heads, BLOCK_S=tile.positions,
            PRECISION=tile.precision, num_warps=tile.warps,
        )  # fmt: skip
    return partials

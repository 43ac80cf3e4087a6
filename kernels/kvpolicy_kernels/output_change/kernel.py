"""The Triton kernels: sums of each query's softmax, its output, then the changes.

A program of the last kernel holds some keys and values, and reads one query after another: the
difference of a value and an output is squared by channels, as products would lose its digits.
"""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.common.triton.logits import capped, load_rows, products_by_parts
from kvpolicy_kernels.window_attention.sums import Plan, log2_sums, plan_of

LN_2 = tl.constexpr(math.log(2))
SPAN = 64
"""Positions of a part of the sum are a multiple of this, as those of each tile are its divisors."""


class OutputTile(NamedTuple):
    """How many heads, queries and positions a program multiplies at once, and by which products."""

    heads: int
    queries: int
    positions: int
    channels: int
    products: str
    sums: str
    warps: int


def output_tile(
    group: int, window: int, block_dim: int, block_values: int, *, exact: bool
) -> OutputTile:
    """Choose a tile by shape alone. Exact products hold all their channels in registers."""
    heads = min(16, triton.next_power_of_2(group))
    # Tensor cores multiply at least 16 rows.
    queries = max(min(32 // heads, triton.next_power_of_2(window)), 16 // heads)
    if exact:
        return OutputTile(heads, queries, 16, 16, "ieee", "ieee", 4)
    warps = 8 if max(block_dim, block_values) > 128 else 4
    return OutputTile(heads, queries, 32, block_dim, "tf32", "tf32x3", warps)


def positions_at_once(block_dim: int, block_values: int) -> int:
    """Return of how many positions a program holds key and value; more would spill registers."""
    return 1 << min(64, 8192 // (block_dim + block_values)).bit_length() - 1


def unsupported(queries: Tensor, keys: Tensor, values: Tensor, *vectors: Tensor) -> str | None:
    """Return why the kernels cannot take these tensors, weights and sinks; None if they can."""
    return launch.refusal(queries, keys, values, *(vector[..., None] for vector in vectors))


@triton.jit
def _outputs_kernel(
    queries, keys, values, totals, partials,
    N, G, W, S, PAST, GROUP_BLOCKS, LENGTH, M, scale, softcap,
    queries_b, queries_h, queries_w, queries_d,
    keys_b, keys_n, keys_s, keys_d,
    values_b, values_n, values_s, values_d,
    D: tl.constexpr, BLOCK_D: tl.constexpr, DV: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_S: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, SUMS: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1).to(tl.int64)
    place = tl.program_id(2).to(tl.int64)
    b, n = place // GROUP_BLOCKS // N, place // GROUP_BLOCKS % N
    r = tl.arange(0, BLOCK_W * BLOCK_G)
    g, w = place % GROUP_BLOCKS * BLOCK_G + r % BLOCK_G, tile * BLOCK_W + r // BLOCK_G
    h, valid = n * G + g, (g < G) & (w < W)
    rows = queries + b * queries_b + h * queries_h + w * queries_w
    row = (b * N * G + h) * W + w
    total = tl.load(totals + row, mask=valid, other=0.0)
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    v = tl.arange(0, BLOCK_V).to(tl.int64)
    if CHANNELS == BLOCK_D:
        block = load_rows(rows, valid, d, queries_d, D, UP)
    sums = tl.zeros([BLOCK_W * BLOCK_G, BLOCK_V], tl.float32)
    end = tl.minimum((split + 1) * LENGTH, tl.minimum(S, PAST + (tile + 1) * BLOCK_W))
    for start in range(split * LENGTH, end, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        key_rows = keys + b * keys_b + n * keys_n + s * keys_s
        if CHANNELS == BLOCK_D:
            seen = load_rows(key_rows, s < S, d, keys_d, D, UP)
            product = tl.dot(block, tl.trans(seen), input_precision=PRECISION)
        else:
            product = products_by_parts(
                rows, valid, queries_d, key_rows, s < S, keys_d, D, CHANNELS, PRECISION, UP
            )
        logits = capped(product, scale, softcap)
        sees = valid[:, None] & (s < S)[None, :] & (s[None, :] <= (PAST + w)[:, None])
        share = tl.exp2(tl.where(sees, logits - total[:, None], float("-inf")))
        value_rows = values + b * values_b + n * values_n + s * values_s
        summed = load_rows(value_rows, s < S, v, values_d, DV, True)
        sums = tl.dot(share, summed, sums, input_precision=SUMS)
    target = partials + split * M + row * DV
    tl.store(target[:, None] + v[None, :], sums, mask=valid[:, None] & (v < DV)[None, :])


@triton.jit
def _changes_kernel(
    queries, keys, values, outputs, weights, totals, changes,
    N, G, W, S, PAST, scale, softcap,
    queries_b, queries_h, queries_w, queries_d,
    keys_b, keys_n, keys_s, keys_d,
    values_b, values_n, values_s, values_d, weights_b, weights_w,
    D: tl.constexpr, BLOCK_D: tl.constexpr, DV: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_S: tl.constexpr, VALUE: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * BLOCK_S
    place = tl.program_id(1).to(tl.int64)
    b, n = place // N, place % N
    s = start + tl.arange(0, BLOCK_S)
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    v = tl.arange(0, BLOCK_V).to(tl.int64)
    key_rows = keys + b * keys_b + n * keys_n + s * keys_s
    block = load_rows(key_rows, s < S, d, keys_d, D, True)
    value_rows = values + b * values_b + n * values_n + s * values_s
    own = load_rows(value_rows, s < S, v, values_d, DV, True)
    if outputs is None:
        squares = tl.sum(own * own, 1)
    for h in range(n * G, n * G + G):
        change = tl.zeros([BLOCK_S], tl.float32)
        # Earlier queries see no position of the block.
        for w in range(tl.maximum(start - PAST, 0), W):
            row = (b * N * G + h) * W + w
            query = queries + b * queries_b + h * queries_h + w * queries_w + d * queries_d
            query = tl.load(query, mask=d < D, other=0).to(tl.float32)
            logits = capped(tl.sum(block * query[None, :], 1), scale, softcap)
            sees = (s < S) & (s <= PAST + w)
            share = tl.exp2(tl.where(sees, logits - tl.load(totals + row), float("-inf")))
            weight = tl.load(weights + b * weights_b + w * weights_w).to(tl.float32)
            if outputs is None:
                change += weight * share * share * squares
            else:
                output = tl.load(outputs + row * DV + v, mask=v < DV, other=0.0)
                factor = share * tl.where(share == 0, 0.0, logits) * LN_2
                moved = factor[:, None] * (own - output[None, :])
                if VALUE:
                    moved += share[:, None] * own
                change += weight * tl.sum(moved * moved, 1)
        tl.store(changes + (b * N * G + h) * S + s, change, mask=s < S)


def output_change(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    values: Float[Tensor, "B N S Dv"],
    weights: Float[Tensor, " W"] | Float[Tensor, "B W"],
    zeroed: Literal["joint", "key", "value"] = "joint",
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    causal: bool = True,
) -> Float32[Tensor, "B H S"]:
    """Read the keys three times and the values twice, in at most five launches."""
    batch, heads, window, dim = queries.shape
    kv_heads, positions, dim_values = values.shape[1:]
    plan = plan_of(queries, keys, scaling=scaling, softcap=softcap)
    past = positions - window if causal else positions
    changes = torch.empty(batch, heads, positions, dtype=torch.float32, device=keys.device)
    block_dim = max(16, triton.next_power_of_2(dim))
    block_values = max(16, triton.next_power_of_2(dim_values))
    block = positions_at_once(block_dim, block_values)
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(keys):
        totals = log2_sums(queries, keys, sinks, plan, causal=causal)
        outputs = None
        if zeroed != "value":
            outputs = _outputs(queries, keys, values, totals, plan, past)
        _changes_kernel[(triton.cdiv(positions, block), batch * kv_heads)](
            queries, keys, values, outputs, weights, totals, changes,
            kv_heads, heads // kv_heads, window, positions, past, *plan.numbers,
            *queries.stride(), *keys.stride(), *values.stride(),
            weights.stride(0) if weights.dim() == 2 else 0, weights.stride(-1),
            D=dim, BLOCK_D=block_dim, DV=dim_values, BLOCK_V=block_values,
            BLOCK_S=block, VALUE=zeroed == "joint", num_warps=4,
        )  # fmt: skip
    return changes


def _outputs(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    values: Float[Tensor, "B N S Dv"],
    totals: Float32[Tensor, "B H W"],
    plan: Plan,
    past: int,
) -> Float32[Tensor, "B H W Dv"]:
    """Sum parts of the positions in one launch, then add up the parts."""
    batch, heads, window, dim = queries.shape
    kv_heads, positions, dim_values = values.shape[1:]
    block_dim, group = plan.options["BLOCK_D"], heads // kv_heads
    exact = plan.options["PRECISION"] == "ieee" or launch.product_precision(values) == "ieee"
    block_values = max(16, triton.next_power_of_2(dim_values))
    tile = output_tile(group, window, block_dim, block_values, exact=exact)
    row_tiles, group_blocks = triton.cdiv(window, tile.queries), triton.cdiv(group, tile.heads)
    # The batch size must not count: a sequence's sums may not depend on the rest of the batch.
    blocks = triton.cdiv(positions, SPAN)
    parts = launch.splits(row_tiles * kv_heads * group_blocks, blocks)
    length = SPAN * triton.cdiv(blocks, parts)
    splits = triton.cdiv(positions, length)
    partials = totals.new_empty(splits, batch, heads, window, dim_values)
    _outputs_kernel[(row_tiles, splits, batch * kv_heads * group_blocks)](
        queries, keys, values, totals, partials,
        kv_heads, group, window, positions, past, group_blocks, length, partials[0].numel(),
        *plan.numbers, *queries.stride(), *keys.stride(), *values.stride(),
        D=dim, BLOCK_D=block_dim, DV=dim_values, BLOCK_V=block_values,
        BLOCK_G=tile.heads, BLOCK_W=tile.queries, BLOCK_S=tile.positions, CHANNELS=tile.channels,
        PRECISION=tile.products, SUMS=tile.sums, UP=plan.options["UP"] or exact,
        num_warps=tile.warps,
    )  # fmt: skip
    return partials[0] if splits == 1 else partials.sum(0)

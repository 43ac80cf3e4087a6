"""The Triton kernels: the logsumexp of every query, then the attention folded over the queries.

A tile of rows holds a few queries of every head of a group, BLOCK_W x BLOCK_G, so that the group
reads its keys once. The queries are the outer axis: those of a tile see almost the same positions.
"""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels import launching
from kvpolicy_kernels.window_attention.reference import WindowAttention

BLOCK_M = 16


class Tile(NamedTuple):
    """How many heads, queries, positions and channels a program multiplies, and by what warps."""

    heads: int
    queries: int
    positions: int
    channels: int
    warps: int


def unsupported(queries: Tensor, keys: Tensor, weights: Tensor) -> str | None:
    """Say why these queries, keys and weights are not for the kernels; None if they are."""
    return launching.refusal(queries, keys, weights[:, None])


def tile_of(group: int, window: int, block_dim: int, exact: bool) -> Tile:
    """Choose by shape alone: what spills nothing, and fits 99 KiB where a GPU shares no more.

    Exact products in float32 run without tensor cores, and hold all channels in registers at once.
    """
    rows = 64 if exact or block_dim > 128 else 128
    heads = min(rows, triton.next_power_of_2(group))
    # Tensor cores multiply 16 rows at least.
    queries = max(min(rows // heads, triton.next_power_of_2(window)), 16 // heads)
    warps = 4 if heads * queries < 64 or (rows == 64 and not exact) else 8
    return Tile(heads, queries, 64, 16 if exact else block_dim, warps)


@triton.jit
def _head(place, N, GROUP_BLOCKS):
    return place // GROUP_BLOCKS // N, place // GROUP_BLOCKS % N, place % GROUP_BLOCKS


@triton.jit
def _load(rows, inside, d, dim_stride, D: tl.constexpr, UP: tl.constexpr):
    mask = inside[:, None] & (d < D)[None, :]
    loaded = tl.load(rows[:, None] + d[None, :] * dim_stride, mask=mask, other=0)
    return loaded.to(tl.float32) if UP else loaded


@triton.jit
def _logits(
    query_rows, valid, queries_d, key_rows, inside, keys_d, scale, softcap,
    D: tl.constexpr, BLOCK_D: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    logits = tl.zeros([query_rows.shape[0], key_rows.shape[0]], tl.float32)
    for channel in range(0, BLOCK_D, CHANNELS):
        d = channel + tl.arange(0, CHANNELS).to(tl.int64)
        queries = _load(query_rows, valid, d, queries_d, D, UP)
        keys = _load(key_rows, inside, d, keys_d, D, UP)
        logits = tl.dot(queries, tl.trans(keys), logits, input_precision=PRECISION)
    logits *= scale
    if softcap is not None:
        # tanh(x) = 1 - 2 / (1 + exp(2 x)); the factor 2 is in `scale`.
        logits = softcap * (1 - 2 / (1 + tl.exp2(logits)))
    return logits


@triton.jit
def _base(peak):
    # A row may see nothing of a split, and -inf - -inf is not a number.
    return tl.where(peak == float("-inf"), 0.0, peak)


@triton.jit
def _log2_sum(peak, mass):
    return peak + tl.log2(tl.where(peak == float("-inf"), 1.0, mass))


@triton.jit
def _logsumexp_kernel(
    queries, keys, partials,
    N, G, W, S, GROUP_BLOCKS, M, SPAN, scale, softcap,
    queries_b, queries_h, queries_w, queries_d,
    keys_b, keys_n, keys_s, keys_d,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_S: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    # The last tiles see most: they start first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0).to(tl.int64)
    split = tl.program_id(1).to(tl.int64)
    b, n, group_block = _head(tl.program_id(2).to(tl.int64), N, GROUP_BLOCKS)
    r = tl.arange(0, BLOCK_W * BLOCK_G)
    g, w = group_block * BLOCK_G + r % BLOCK_G, tile * BLOCK_W + r // BLOCK_G
    h, valid = n * G + g, (g < G) & (w < W)
    query_rows = queries + b * queries_b + h * queries_h + w * queries_w
    peak = tl.full([BLOCK_W * BLOCK_G], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK_W * BLOCK_G], tl.float32)
    end = tl.minimum((split + 1) * SPAN, tl.minimum(S, S - W + (tile + 1) * BLOCK_W))
    for start in range(split * SPAN, end, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        key_rows = keys + b * keys_b + n * keys_n + s * keys_s
        logits = _logits(
            query_rows, valid, queries_d, key_rows, s < S, keys_d,
            scale, softcap, D, BLOCK_D, CHANNELS, PRECISION, UP,
        )  # fmt: skip
        logits = tl.where(s[None, :] <= (S - W + w)[:, None], logits, float("-inf"))
        before, peak = peak, tl.maximum(peak, tl.max(logits, 1))
        base = _base(peak)
        mass = mass * tl.exp2(before - base) + tl.sum(tl.exp2(logits - base[:, None]), 1)
    row = split * M + (b * N * G + h) * W + w
    tl.store(partials + row, _log2_sum(peak, mass), mask=valid)


@triton.jit
def _combine_kernel(partials, totals, M, SPLITS, BLOCK_M: tl.constexpr, BLOCK_SPLITS: tl.constexpr):
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    split = tl.arange(0, BLOCK_SPLITS).to(tl.int64)
    parts = tl.load(
        partials + split[:, None] * M + m[None, :],
        mask=(split < SPLITS)[:, None] & (m < M)[None, :],
        other=float("-inf"),
    )
    peak = tl.max(parts, 0)
    mass = tl.sum(tl.exp2(parts - _base(peak)[None, :]), 0)
    tl.store(totals + m, _log2_sum(peak, mass), mask=m < M)


@triton.jit
def _fold_kernel(
    queries, keys, weights, totals, attention,
    N, G, W, S, GROUP_BLOCKS, scale, softcap,
    queries_b, queries_h, queries_w, queries_d,
    keys_b, keys_n, keys_s, keys_d, weights_w,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_S: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * BLOCK_S
    b, n, group_block = _head(tl.program_id(1).to(tl.int64), N, GROUP_BLOCKS)
    s = start + tl.arange(0, BLOCK_S)
    key_rows = keys + b * keys_b + n * keys_n + s * keys_s
    r = tl.arange(0, BLOCK_W * BLOCK_G)
    g = group_block * BLOCK_G + r % BLOCK_G
    h = n * G + g
    folded = tl.zeros([BLOCK_W * BLOCK_G, BLOCK_S], tl.float32)
    # Queries of earlier tiles see no position of the block.
    first = tl.maximum(start - (S - W), 0) // BLOCK_W * BLOCK_W
    for tile in range(first, W, BLOCK_W):
        w = tile + r // BLOCK_G
        valid = (g < G) & (w < W)
        query_rows = queries + b * queries_b + h * queries_h + w * queries_w
        weight = tl.load(weights + w * weights_w, mask=w < W, other=0).to(tl.float32)
        total = tl.load(totals + (b * N * G + h) * W + w, mask=valid, other=0)
        logits = _logits(
            query_rows, valid, queries_d, key_rows, s < S, keys_d,
            scale, softcap, D, BLOCK_D, CHANNELS, PRECISION, UP,
        )  # fmt: skip
        sees = valid[:, None] & (s[None, :] <= (S - W + w)[:, None])
        # Masked before the exponential, which a large logit out of sight overflows.
        share = tl.exp2(tl.where(sees, logits - total[:, None], float("-inf")))
        folded += share * weight[:, None]
    by_head = tl.sum(tl.reshape(folded, [BLOCK_W, BLOCK_G, BLOCK_S]), 0)
    g = group_block * BLOCK_G + tl.arange(0, BLOCK_G)
    rows = attention + (b * N * G + n * G + g) * S
    tl.store(rows[:, None] + s[None, :], by_head, mask=(g < G)[:, None] & (s < S)[None, :])


def window_attention(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    weights: Float[Tensor, " W"],
    *,
    scaling: float,
    softcap: float | None = None,
) -> WindowAttention:
    """Read the keys twice: what a row's logits weigh is known only with their sum."""
    batch, heads, window, dim = queries.shape
    kv_heads, positions = keys.shape[1:3]
    group = heads // kv_heads
    mixed = queries.dtype != keys.dtype
    precision = "ieee" if mixed else launching.precision(queries, keys)
    block_dim = max(16, triton.next_power_of_2(dim))
    tile = tile_of(group, window, block_dim, exact=precision == "ieee")
    group_blocks = triton.cdiv(group, tile.heads)
    row_tiles, places = triton.cdiv(window, tile.queries), kv_heads * group_blocks
    blocks = triton.cdiv(positions, tile.positions)
    # Not by the batch: a sequence's sums must not depend on its mates.
    span = tile.positions * triton.cdiv(blocks, launching.splits(row_tiles * places, blocks))
    splits = triton.cdiv(positions, span)
    sizes = (kv_heads, group, window, positions, group_blocks)
    numbers = _base_2(scaling, softcap)
    options = {
        "D": dim, "BLOCK_D": block_dim,
        "BLOCK_G": tile.heads, "BLOCK_W": tile.queries, "BLOCK_S": tile.positions,
        "CHANNELS": tile.channels, "PRECISION": precision,
        "UP": launching.INTERPRETED or mixed, "num_warps": tile.warps,
    }  # fmt: skip
    attention = torch.empty(batch, heads, positions, dtype=torch.float32, device=keys.device)
    partials = attention.new_empty(splits, batch, heads, window)
    with torch.cuda.device_of(keys):
        _logsumexp_kernel[(row_tiles, splits, batch * places)](
            queries, keys, partials, *sizes, partials[0].numel(), span, *numbers,
            *queries.stride(), *keys.stride(), **options,
        )  # fmt: skip
        totals = _combine(partials)
        _fold_kernel[(blocks, batch * places)](
            queries, keys, weights, totals, attention, *sizes, *numbers,
            *queries.stride(), *keys.stride(), *weights.stride(), **options,
        )  # fmt: skip
    return WindowAttention(attention, totals * math.log(2))


def _base_2(scaling: float, softcap: float | None) -> tuple[float, float | None]:
    """Fold log2(e) into the numbers of `_logits`, so that 2 to their power is the exponential."""
    log2_e = math.log2(math.e)
    if softcap is None:
        return scaling * log2_e, None
    return 2 * scaling / softcap * log2_e, softcap * log2_e


def _combine(partials: Float32[Tensor, "splits B H W"]) -> Float32[Tensor, "B H W"]:
    splits, rows = len(partials), partials[0].numel()
    if splits == 1:
        return partials[0]
    totals = torch.empty_like(partials[0])
    _combine_kernel[(triton.cdiv(rows, BLOCK_M),)](
        partials, totals, rows, splits,
        BLOCK_M=BLOCK_M, BLOCK_SPLITS=triton.next_power_of_2(splits),
    )  # fmt: skip
    return totals

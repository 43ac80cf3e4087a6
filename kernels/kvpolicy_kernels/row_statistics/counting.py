"""Kernels that sum positions without a row of logits in memory, for layers with many long rows.

They find the cut of every row at once, four bits at a time: each launch computes all logits again
and counts the digits of those that may be the cut. So the number of launches is the same for every
length. A row's positions are split among programs, which leave their counts for the next launch.
"""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float64
from torch import Tensor

from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.common.triton.largest import ordered
from kvpolicy_kernels.common.triton.logits import products_by_parts

BITS = 32
DIGIT = 4
LAUNCHES = BITS // DIGIT + 2
"""One for each digit, one that sums positions, one that divides."""
BLOCK_S = 64
WARPS = 8
BLOCK_SPLITS = 4
BLOCK_MEANS = 128


@triton.jit
def _ordered_logits(
    rows, exists, queries_d, keys, s, seen, S, keys_s, keys_d, scaling,
    D: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Return logits as `ordered`, and 0, which is below them all, where a row does not see."""
    key_rows = keys + s.to(tl.int64) * keys_s
    product = products_by_parts(
        rows, exists, queries_d, key_rows, s < S, keys_d, D, CHANNELS, PRECISION, UP
    )
    return tl.where(s[None, :] < seen[:, None], ordered(product * scaling), 0)


@triton.jit
def _after_digit(
    counts, prefixes, rooms, row, rank, M, SPLITS, shift,
    FIRST: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    """Return each row's digits so far, the room among numbers that begin with them, and the last.

    The counts are those of the launch before, for the digit at `shift`.
    """
    d = tl.arange(0, 16)
    total = tl.zeros([row.shape[0], 16], tl.int32)
    for start in range(0, SPLITS, BLOCK_SPLITS):
        split = start + tl.arange(0, BLOCK_SPLITS)
        place = (split[:, None, None] * M + row[None, :, None]) * 16 + d[None, None, :]
        total += tl.sum(tl.load(counts + place, mask=split[:, None, None] < SPLITS, other=0), 0)
    if FIRST:
        prefix, room = tl.zeros_like(row).to(tl.uint32), rank
    else:
        prefix, room = tl.load(prefixes + row).to(tl.uint32, bitcast=True), tl.load(rooms + row)
    at_least = tl.cumsum(total, 1, reverse=True)
    digit = tl.sum((at_least >= room[:, None]).to(tl.int32), 1) - 1
    # A row that does not exist has no counts.
    digit = tl.maximum(digit, 0)
    room -= tl.sum(tl.where(d[None, :] > digit[:, None], total, 0), 1)
    return prefix | (digit.to(tl.uint32) << shift), room, digit


@triton.jit
def _tile(queries, keys, N, G, W, S, queries_b, queries_h, queries_w, keys_b, keys_n, ROWS):
    """Return a tile's rows: places of their queries, whether each exists, and what it sees."""
    tile = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(G * W, ROWS)
    b, n = tile // tiles // N, tile // tiles % N
    r = tile % tiles * ROWS + tl.arange(0, ROWS)
    rows = queries + b * queries_b + (n * G + r // W) * queries_h + r % W * queries_w
    exists = r < G * W
    seen = tl.where(exists, S - W + 1 + r % W, 0).to(tl.int32)
    return rows, exists, seen, keys + b * keys_b + n * keys_n


@triton.jit(do_not_specialize=["count", "shift"])
def _digits_kernel(
    queries, keys, before, counts, prefixes, rooms, next_prefixes, next_rooms, scaling,
    count, shift, M, SPLITS, SPAN, N, G, W, S,
    queries_b, queries_h, queries_w, queries_d,
    keys_b, keys_n, keys_s, keys_d,
    PASS: tl.constexpr,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_S: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, UP: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    rows, exists, seen, keys = _tile(
        queries, keys, N, G, W, S, queries_b, queries_h, queries_w, keys_b, keys_n, ROWS
    )
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    prefix = tl.zeros([ROWS], tl.uint32)
    if PASS > 0:
        rank = tl.minimum(seen, count)
        prefix, room, _ = _after_digit(
            before, prefixes, rooms, row, rank, M, SPLITS, shift + 4, PASS == 1, BLOCK_SPLITS
        )
        if split == 0:
            tl.store(next_prefixes + row, prefix.to(tl.int32, bitcast=True))
            tl.store(next_rooms + row, room)
    unknown = (tl.full((), 0xFFFFFFFF, tl.uint32) >> (28 - shift)).to(tl.uint32)
    field = (8 * tl.arange(0, 8)).to(tl.int64)
    low, high = tl.zeros([ROWS, 8], tl.int32), tl.zeros([ROWS, 8], tl.int32)
    for start in range(split * SPAN, tl.minimum((split + 1) * SPAN, S), BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        numbers = _ordered_logits(
            rows, exists, queries_d, keys, s, seen, S, keys_s, keys_d, scaling,
            D, CHANNELS, PRECISION, UP,
        )  # fmt: skip
        alike = (numbers > 0) & ((numbers ^ prefix[:, None]) <= unknown)
        digit = ((numbers >> shift) & 15).to(tl.int64)
        # A block has fewer than 256 numbers: eight counts of a row fit into 64 bits.
        one = tl.where(alike, tl.full((), 1, tl.int64) << (digit % 8 * 8), 0)
        some = tl.sum(tl.where(digit < 8, one, 0), 1)
        others = tl.sum(tl.where(digit < 8, 0, one), 1)
        low += ((some[:, None] >> field[None, :]) & 255).to(tl.int32)
        high += ((others[:, None] >> field[None, :]) & 255).to(tl.int32)
    place = counts + (split * M + row[:, None]) * 16 + tl.arange(0, 8)[None, :]
    tl.store(place, low)
    tl.store(place + 8, high)


@triton.jit(do_not_specialize=["count"])
def _positions_kernel(
    queries, keys, counts, prefixes, rooms, sums, scaling,
    count, M, SPLITS, SPAN, N, G, W, S,
    queries_b, queries_h, queries_w, queries_d,
    keys_b, keys_n, keys_s, keys_d,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_S: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, UP: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    rows, exists, seen, keys = _tile(
        queries, keys, N, G, W, S, queries_b, queries_h, queries_w, keys_b, keys_n, ROWS
    )
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    rank = tl.minimum(seen, count)
    cut, room, digit = _after_digit(
        counts, prefixes, rooms, row, rank, M, SPLITS, 0, False, BLOCK_SPLITS
    )
    # Of numbers equal to the cut, those of earlier splits come first.
    for earlier in range(split):
        room -= tl.load(counts + (earlier * M + row) * 16 + digit)
    total = tl.zeros([ROWS], tl.int64)
    for start in range(split * SPAN, tl.minimum((split + 1) * SPAN, S), BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        numbers = _ordered_logits(
            rows, exists, queries_d, keys, s, seen, S, keys_s, keys_d, scaling,
            D, CHANNELS, PRECISION, UP,
        )  # fmt: skip
        equal = (numbers == cut[:, None]).to(tl.int32)
        first = (equal == 1) & (tl.cumsum(equal, 1) <= room[:, None])
        largest = first | (numbers > cut[:, None])
        total += tl.sum(tl.where(largest, s[None, :], 0).to(tl.int64), 1)
        room -= tl.sum(equal, 1)
    tl.store(sums + split * M + row, total)


@triton.jit(do_not_specialize=["count"])
def _means_kernel(sums, means, count, M, SPLITS, G, W, S, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tiles = tl.cdiv(G * W, ROWS)
    r = row // ROWS % tiles * ROWS + row % ROWS
    exists = (row < M) & (r < G * W)
    total = tl.zeros([BLOCK], tl.int64)
    for split in range(SPLITS):
        total += tl.load(sums + split * M + row, mask=exists, other=0)
    rank = tl.minimum(S - W + 1 + r % W, count)
    place = (row // ROWS // tiles).to(tl.int64) * (G * W) + r
    tl.store(means + place, total.to(tl.float64) / rank.to(tl.float64), mask=exists)


def counted_statistics(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    count: int,
    means: Float64[Tensor, "B H W"],
    *,
    scaling: float,
    rows: int,
) -> None:
    """Write the means of `row_statistics` in `LAUNCHES` launches; a tile has `rows` rows."""
    batch, heads, window, dim = queries.shape
    kv_heads, positions = keys.shape[1:3]
    group = heads // kv_heads
    tiles = batch * kv_heads * triton.cdiv(group * window, rows)
    blocks = triton.cdiv(positions, BLOCK_S)
    span = BLOCK_S * triton.cdiv(blocks, launch.splits(tiles, blocks))
    splits, held = triton.cdiv(positions, span), tiles * rows
    # What a launch reads is never what it writes.
    counts = torch.empty(2, splits, held, 16, dtype=torch.int32, device=keys.device)
    states = counts.new_empty(2, 2, held)
    sums = torch.empty(splits, held, dtype=torch.int64, device=keys.device)
    sizes = held, splits, span, kv_heads, group, window, positions
    strides = *queries.stride(), *keys.stride()
    options = {
        "D": dim, "ROWS": rows, "BLOCK_S": BLOCK_S,
        "CHANNELS": launch.channels_at_once(keys.dtype, dim),
        "PRECISION": launch.product_precision(queries, keys), "UP": launch.INTERPRETED,
        "BLOCK_SPLITS": BLOCK_SPLITS, "num_warps": WARPS, "num_stages": 2,
    }  # fmt: skip
    for place in range(BITS // DIGIT):
        last, this = (place + 1) % 2, place % 2
        _digits_kernel[(tiles, splits)](
            queries, keys, counts[last], counts[this], *states[last], *states[this], scaling,
            count, BITS - DIGIT * (place + 1), *sizes, *strides, PASS=min(place, 2), **options,
        )  # fmt: skip
    last = (BITS // DIGIT + 1) % 2
    _positions_kernel[(tiles, splits)](
        queries, keys, counts[last], *states[last], sums, scaling, count, *sizes, *strides,
        **options,
    )  # fmt: skip
    _means_kernel[(triton.cdiv(held, BLOCK_MEANS),)](
        sums, means, count, held, splits, group, window, positions, ROWS=rows, BLOCK=BLOCK_MEANS
    )

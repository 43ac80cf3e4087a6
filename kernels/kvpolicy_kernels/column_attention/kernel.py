"""The Triton kernels: the logsumexp of every query, then each position's sum over the queries.

A tile of rows holds a few queries of every head of a group, BLOCK_Q x BLOCK_G, so that the group
reads its keys once. Query q sees the positions up to PAST + q, as far as there are any.
"""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN201, ANN202, N803
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


class Tile(NamedTuple):
    """How many heads, queries, positions and channels a program multiplies, and by what warps."""

    heads: int
    queries: int
    positions: int
    channels: int
    warps: int


def unsupported(queries: Tensor, keys: Tensor) -> str | None:
    """Say why these queries and keys are not for the kernels; None if they are."""
    if queries.dtype != keys.dtype:
        return f"its queries are {queries.dtype} and its keys {keys.dtype}"
    return launching.refusal(queries, keys)


def tile_of(group: int, queries: int, block_dim: int, *, exact: bool) -> Tile:
    """Choose by shape alone: what fits 99 KiB of shared memory, and spills no registers.

    Exact products in float32 run without tensor cores, and hold all channels in registers at once.
    """
    rows = 64 if exact or block_dim > 128 else 128
    heads = min(rows, triton.next_power_of_2(group))
    # Tensor cores multiply 16 rows at least.
    together = max(min(rows // heads, triton.next_power_of_2(queries)), 16 // heads)
    warps = 8 if heads * together == (64 if exact else 128) else 4
    return Tile(heads, together, 64, 16 if exact else block_dim, warps)


def base_2(scaling: float, softcap: float | None) -> tuple[float, float | None]:
    """Return the numbers of `capped`: 2 to the power of its logits is their exponential."""
    log2_e = math.log2(math.e)
    if softcap is None:
        return scaling * log2_e, None
    return 2 * scaling / softcap * log2_e, softcap * log2_e


@triton.jit
def load_rows(rows, inside, d, dim_stride, D: tl.constexpr, UP: tl.constexpr):
    """Load the channels d of rows; those that are not `inside` are zeros."""
    mask = inside[:, None] & (d < D)[None, :]
    loaded = tl.load(rows[:, None] + d[None, :] * dim_stride, mask=mask, other=0)
    return loaded.to(tl.float32) if UP else loaded


@triton.jit
def products_by_parts(
    rows, valid, dim_stride, key_rows, inside, keys_d,
    D: tl.constexpr, BLOCK_D: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Multiply rows and key rows, a few channels at a time, reading both anew."""
    total = tl.zeros([rows.shape[0], key_rows.shape[0]], tl.float32)
    for channel in range(0, BLOCK_D, CHANNELS):
        d = channel + tl.arange(0, CHANNELS).to(tl.int64)
        block = load_rows(rows, valid, d, dim_stride, D, UP)
        keys = load_rows(key_rows, inside, d, keys_d, D, UP)
        total = tl.dot(block, tl.trans(keys), total, input_precision=PRECISION)
    return total


@triton.jit
def capped(products, scale, softcap):
    """Make logits of products, by the numbers of `base_2`."""
    logits = products * scale
    if softcap is not None:
        # tanh(x) = 1 - 2 / (1 + exp(2 x)); the factor 2 is in `scale`.
        logits = softcap * (1 - 2 / (1 + tl.exp2(logits)))
    return logits


@triton.jit
def _logsumexp_kernel(
    queries, keys, partials,
    N, G, Q, S, PAST, GROUP_BLOCKS, SPAN, M, scale, softcap,
    queries_b, queries_h, queries_q, queries_d,
    keys_b, keys_n, keys_s, keys_d,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_S: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    # The last tiles see most: they start first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0).to(tl.int64)
    split = tl.program_id(1).to(tl.int64)
    place = tl.program_id(2).to(tl.int64)
    b, n = place // GROUP_BLOCKS // N, place // GROUP_BLOCKS % N
    r = tl.arange(0, BLOCK_Q * BLOCK_G)
    g, q = place % GROUP_BLOCKS * BLOCK_G + r % BLOCK_G, tile * BLOCK_Q + r // BLOCK_G
    h, valid = n * G + g, (g < G) & (q < Q)
    rows = queries + b * queries_b + h * queries_h + q * queries_q
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    if CHANNELS == BLOCK_D:
        block = load_rows(rows, valid, d, queries_d, D, UP)
    peak = tl.full([BLOCK_Q * BLOCK_G], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK_Q * BLOCK_G], tl.float32)
    end = tl.minimum((split + 1) * SPAN, tl.minimum(S, PAST + (tile + 1) * BLOCK_Q))
    for start in range(split * SPAN, end, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        key_rows = keys + b * keys_b + n * keys_n + s * keys_s
        if CHANNELS == BLOCK_D:
            seen = load_rows(key_rows, s < S, d, keys_d, D, UP)
            product = tl.dot(block, tl.trans(seen), input_precision=PRECISION)
        else:
            product = products_by_parts(
                rows, valid, queries_d, key_rows, s < S, keys_d, D, BLOCK_D, CHANNELS, PRECISION, UP
            )
        logits = capped(product, scale, softcap)
        sees = (s < S)[None, :] & (s[None, :] <= (PAST + q)[:, None])
        logits = tl.where(sees, logits, float("-inf"))
        before, peak = peak, tl.maximum(peak, tl.max(logits, 1))
        # A row may see nothing of a split, and -inf - -inf is not a number.
        base = tl.where(peak == float("-inf"), 0.0, peak)
        mass = mass * tl.exp2(before - base) + tl.sum(tl.exp2(logits - base[:, None]), 1)
    row = split * M + (b * N * G + h) * Q + q
    # No log2(0), of which the interpreter warns: where there is no mass, the peak is -inf.
    mass = tl.where(mass == 0, 1.0, mass)
    tl.store(partials + row, peak + tl.log2(mass), mask=valid)


@triton.jit
def _sum_kernel(
    queries, keys, totals, attention,
    N, G, Q, S, PAST, GROUP_BLOCKS, scale, softcap,
    queries_b, queries_h, queries_q, queries_d,
    keys_b, keys_n, keys_s, keys_d,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_S: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * BLOCK_S
    place = tl.program_id(1).to(tl.int64)
    b, n = place // GROUP_BLOCKS // N, place // GROUP_BLOCKS % N
    s = start + tl.arange(0, BLOCK_S)
    key_rows = keys + b * keys_b + n * keys_n + s * keys_s
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    if CHANNELS == BLOCK_D:
        seen = load_rows(key_rows, s < S, d, keys_d, D, UP)
    r = tl.arange(0, BLOCK_Q * BLOCK_G)
    g = place % GROUP_BLOCKS * BLOCK_G + r % BLOCK_G
    h = n * G + g
    sums = tl.zeros([BLOCK_Q * BLOCK_G, BLOCK_S], tl.float32)
    # Queries of earlier tiles see no position of the block.
    first = tl.maximum(start - PAST, 0) // BLOCK_Q * BLOCK_Q
    for tile in range(first, Q, BLOCK_Q):
        q = tile + r // BLOCK_G
        valid = (g < G) & (q < Q)
        rows = queries + b * queries_b + h * queries_h + q * queries_q
        total = tl.load(totals + (b * N * G + h) * Q + q, mask=valid, other=0)
        if CHANNELS == BLOCK_D:
            block = load_rows(rows, valid, d, queries_d, D, UP)
            product = tl.dot(block, tl.trans(seen), input_precision=PRECISION)
        else:
            product = products_by_parts(
                rows, valid, queries_d, key_rows, s < S, keys_d, D, BLOCK_D, CHANNELS, PRECISION, UP
            )
        logits = capped(product, scale, softcap)
        sees = valid[:, None] & (s[None, :] <= (PAST + q)[:, None])
        # Masked before the exponential, which a large logit out of sight overflows.
        sums += tl.exp2(tl.where(sees, logits - total[:, None], float("-inf")))
    by_head = tl.sum(tl.reshape(sums, [BLOCK_Q, BLOCK_G, BLOCK_S]), 0)
    g = place % GROUP_BLOCKS * BLOCK_G + tl.arange(0, BLOCK_G)
    target = attention + (b * N * G + n * G + g) * S
    tl.store(target[:, None] + s[None, :], by_head, mask=(g < G)[:, None] & (s < S)[None, :])


def column_attention(
    queries: Float[Tensor, "B H Q D"],
    keys: Float[Tensor, "B N S D"],
    *,
    scaling: float,
    softcap: float | None = None,
    causal: bool = True,
) -> Float32[Tensor, "B H S"]:
    """Multiply queries and keys twice: what a row's logits weigh is known only with their sum."""
    batch, heads, count, dim = queries.shape
    kv_heads, positions = keys.shape[1:3]
    group = heads // kv_heads
    precision = launching.precision(queries, keys)
    block_dim = max(16, triton.next_power_of_2(dim))
    tile = tile_of(group, count, block_dim, exact=precision == "ieee")
    group_blocks = triton.cdiv(group, tile.heads)
    row_tiles, places = triton.cdiv(count, tile.queries), batch * kv_heads * group_blocks
    blocks = triton.cdiv(positions, tile.positions)
    span = triton.cdiv(blocks, launching.splits(row_tiles * places, blocks)) * tile.positions
    splits = triton.cdiv(positions, span)
    past = positions - count if causal else positions
    sizes = (kv_heads, group, count, positions, past, group_blocks)
    numbers, strides = base_2(scaling, softcap), (*queries.stride(), *keys.stride())
    options = {
        "D": dim, "BLOCK_D": block_dim,
        "BLOCK_G": tile.heads, "BLOCK_Q": tile.queries, "BLOCK_S": tile.positions,
        "CHANNELS": tile.channels, "PRECISION": precision, "UP": launching.INTERPRETED,
        "num_warps": tile.warps,
    }  # fmt: skip
    attention = torch.empty(batch, heads, positions, dtype=torch.float32, device=keys.device)
    partials = attention.new_empty(splits, batch, heads, count)
    with torch.cuda.device_of(keys):
        _logsumexp_kernel[(row_tiles, splits, places)](
            queries, keys, partials, *sizes, span, partials[0].numel(), *numbers, *strides,
            **options,
        )  # fmt: skip
        totals = partials[0] if splits == 1 else _combined(partials)
        _sum_kernel[(blocks, places)](
            queries, keys, totals, attention, *sizes, *numbers, *strides, **options
        )
    return attention


def _combined(partials: Float32[Tensor, "splits B H Q"]) -> Float32[Tensor, "B H Q"]:
    """Add up in base 2."""
    return (partials * math.log(2)).logsumexp(0) / math.log(2)

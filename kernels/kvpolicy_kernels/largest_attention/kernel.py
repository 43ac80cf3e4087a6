"""The Triton kernels: sums of each query's softmax, what pooling loses, then the maxima.

A program pools by a product with a matrix of zeros and ones: the rows of attention to some
positions, times which of them are neighbours of each position of the program.
"""

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
from kvpolicy_kernels.common.triton.logits import capped, load_rows, products_by_parts
from kvpolicy_kernels.largest_attention.reference import LargestAttention
from kvpolicy_kernels.window_attention.sums import log2_sums, plan_of

BLOCK_S = 16


def positions_at_once(exact: bool) -> int:
    """Return how many positions a program has; more would spill registers."""
    return 16 if exact else 64


def unsupported(queries: Tensor, keys: Tensor, *sinks: Tensor) -> str | None:
    """Return why the kernels cannot take these queries, keys and sinks; None if they can."""
    return launch.refusal(queries, keys, *(each[:, None] for each in sinks))


@triton.jit
def _logits(
    rows, block, valid, queries_d, keys, s, inside, keys_s, keys_d, scale, softcap,
    D: tl.constexpr, BLOCK_D: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Return the logits of rows and positions, to the base 2; `block` has all channels or none."""
    key_rows = keys + s.to(tl.int64) * keys_s
    if CHANNELS == BLOCK_D:
        d = tl.arange(0, BLOCK_D).to(tl.int64)
        seen = load_rows(key_rows, inside, d, keys_d, D, UP)
        product = tl.dot(block, tl.trans(seen), input_precision=PRECISION)
    else:
        product = products_by_parts(
            rows, valid, queries_d, key_rows, inside, keys_d, D, CHANNELS, PRECISION, UP
        )
    return capped(product, scale, softcap)


@triton.jit
def _factors_kernel(
    queries, keys, past_sums, window_sums, factors,
    N, G, W, P, GROUP_BLOCKS, HALF, EDGES, scale, softcap,
    queries_b, queries_h, queries_w, queries_d,
    keys_b, keys_n, keys_s, keys_d,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_S: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Write what a row's softmax over the past is multiplied by, before and after it is pooled.

    Only positions near the ends lose attention by pooling: those that have fewer neighbours.
    """
    place = tl.program_id(1).to(tl.int64)
    b, n = place // GROUP_BLOCKS // N, place // GROUP_BLOCKS % N
    r = tl.arange(0, BLOCK_W * BLOCK_G)
    g = place % GROUP_BLOCKS * BLOCK_G + r % BLOCK_G
    w = tl.program_id(0).to(tl.int64) * BLOCK_W + r // BLOCK_G
    valid, row = (g < G) & (w < W), (b * N * G + n * G + g) * W + w
    rows = queries + b * queries_b + (n * G + g) * queries_h + w * queries_w
    keys += b * keys_b + n * keys_n
    past = tl.load(past_sums + row, mask=valid, other=0.0)
    of_window = tl.load(window_sums + row, mask=valid, other=0.0)
    block = load_rows(rows, valid, tl.arange(0, BLOCK_D).to(tl.int64), queries_d, D, UP)
    lost = tl.zeros([BLOCK_W * BLOCK_G], tl.float32)
    for start in range(0, EDGES, BLOCK_S):
        i = start + tl.arange(0, BLOCK_S)
        inside = i < EDGES
        s = tl.where(i < (EDGES + 1) // 2, i, P - EDGES + i)
        logits = _logits(
            rows, block, valid, queries_d, keys, s, inside, keys_s, keys_d, scale, softcap,
            D, BLOCK_D, CHANNELS, PRECISION, UP,
        )  # fmt: skip
        share = tl.exp2(
            tl.where(valid[:, None] & inside[None, :], logits - past[:, None], float("-inf"))
        )
        neighbours = tl.minimum(s + HALF, P - 1) - tl.maximum(s - HALF, 0) + 1
        missing = (2 * HALF + 1 - neighbours).to(tl.float32) / (2 * HALF + 1)
        lost += tl.sum(share * tl.where(inside, missing, 0.0)[None, :], 1)
    peak = tl.maximum(past, of_window)
    paid = tl.exp2(past - peak) / (tl.exp2(past - peak) + tl.exp2(of_window - peak))
    pooled = paid / tl.maximum(1 - lost, 1e-30) / (2 * HALF + 1)
    tl.store(factors + 2 * row, paid, mask=valid)
    tl.store(factors + 2 * row + 1, pooled, mask=valid)


@triton.jit
def _largest_kernel(
    queries, keys, past_sums, factors, largest, mean,
    N, G, W, P, GROUP_BLOCKS, HALF, scale, softcap,
    queries_b, queries_h, queries_w, queries_d,
    keys_b, keys_n, keys_s, keys_d,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_S: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK_P: tl.constexpr, PRECISION: tl.constexpr, POOLING: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK_P
    place = tl.program_id(1).to(tl.int64)
    b, n = place // N, place % N
    p = first + tl.arange(0, BLOCK_P)
    keys += b * keys_b + n * keys_n
    r = tl.arange(0, BLOCK_W * BLOCK_G)
    most, total = tl.zeros([BLOCK_P], tl.float32), tl.zeros([BLOCK_P], tl.float32)
    row_tiles = tl.cdiv(W, BLOCK_W)
    for tile in range(GROUP_BLOCKS * row_tiles):
        g = tile // row_tiles * BLOCK_G + r % BLOCK_G
        w = tile % row_tiles * BLOCK_W + r // BLOCK_G
        valid, row = (g < G) & (w < W), (b * N * G + n * G + g) * W + w
        rows = queries + b * queries_b + (n * G + g) * queries_h + w * queries_w
        past = tl.load(past_sums + row, mask=valid, other=0.0)
        paid = tl.load(factors + 2 * row, mask=valid, other=0.0)
        factor = tl.load(factors + 2 * row + 1, mask=valid, other=0.0)
        block = load_rows(rows, valid, tl.arange(0, BLOCK_D).to(tl.int64), queries_d, D, UP)
        pooled = tl.zeros([BLOCK_W * BLOCK_G, BLOCK_P], tl.float32)
        for start in range(first - HALF, first + BLOCK_P + HALF, BLOCK_S):
            s = start + tl.arange(0, BLOCK_S)
            inside = (s >= 0) & (s < P)
            logits = _logits(
                rows, block, valid, queries_d, keys, s, inside, keys_s, keys_d, scale, softcap,
                D, BLOCK_D, CHANNELS, PRECISION, UP,
            )  # fmt: skip
            seen = valid[:, None] & inside[None, :]
            share = tl.exp2(tl.where(seen, logits - past[:, None], float("-inf")))
            near = tl.abs(s[:, None] - p[None, :]) <= HALF
            pooled = tl.dot(share, near.to(tl.float32), pooled, input_precision=POOLING)
            column = tl.sum(share * paid[:, None], 0)
            total += tl.sum(tl.where(s[:, None] == p[None, :], column[:, None], 0.0), 0)
        most = tl.maximum(most, tl.max(pooled * factor[:, None], 0))
    target = place * P + p
    tl.store(largest + target, most, mask=p < P)
    tl.store(mean + target, total / (G * W), mask=p < P)


def largest_attention(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    width: int,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
) -> LargestAttention:
    """Sum each softmax over the past and over the window, then pool: at most five launches."""
    batch, kv_heads, positions, _ = keys.shape
    window = queries.shape[2]
    past, half = positions - window, width // 2
    before, within = keys[:, :, :past], keys[:, :, past:]
    plan = plan_of(queries, before, scaling=scaling, softcap=softcap)
    alone = plan_of(queries, within, scaling=scaling, softcap=softcap)
    largest = torch.empty(batch, kv_heads, past, dtype=torch.float32, device=keys.device)
    mean = torch.empty_like(largest)
    factors = largest.new_empty(*queries.shape[:3], 2)
    options = plan.options | {"BLOCK_S": BLOCK_S}
    exact = plan.options["PRECISION"] == "ieee"
    block = positions_at_once(exact)
    sizes = kv_heads, queries.shape[1] // kv_heads, window, past, plan.group_blocks
    with torch.cuda.device_of(keys):
        past_sums = log2_sums(queries, before, None, plan, causal=False)
        window_sums = log2_sums(queries, within, sinks, alone, causal=True)
        _factors_kernel[(plan.row_tiles, batch * plan.places)](
            queries, before, past_sums, window_sums, factors, *sizes, half,
            min(2 * half, past), *plan.numbers, *queries.stride(), *before.stride(), **options,
        )  # fmt: skip
        _largest_kernel[(triton.cdiv(past, block), batch * kv_heads)](
            queries, before, past_sums, factors, largest, mean, *sizes, half,
            *plan.numbers, *queries.stride(), *before.stride(), BLOCK_P=block,
            POOLING="ieee" if exact else "tf32x3", **options,
        )  # fmt: skip
    return LargestAttention(largest, mean)

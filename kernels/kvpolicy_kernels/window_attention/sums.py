"""Kernels of the logsumexp of each query, and how rows are cut into tiles.

A tile of rows holds BLOCK_W queries of each of BLOCK_G heads of a group, so that the group reads
its keys once. The queries of a tile are neighbours: they see almost the same positions. Query w
sees the positions up to PAST + w, as far as they exist.
"""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.common.triton.logits import (
    base_2,
    capped,
    finite_or_zero,
    load_rows,
    log2_sum,
    products_by_parts,
    sink_of,
)

BLOCK_M = 16


class Tile(NamedTuple):
    """How many heads, queries, positions and channels a program multiplies, and its warps."""

    heads: int
    queries: int
    positions: int
    channels: int
    warps: int


def tile_of(group: int, window: int, block_dim: int, *, exact: bool) -> Tile:
    """Choose a tile by shape alone. It spills no registers and fits 99 KiB of shared memory.

    Exact products in float32 run without tensor cores, and hold all channels in registers.
    """
    rows = 64 if exact or block_dim > 128 else 128
    heads = min(rows, triton.next_power_of_2(group))
    # Tensor cores multiply at least 16 rows.
    queries = max(min(rows // heads, triton.next_power_of_2(window)), 16 // heads)
    warps = 8 if heads * queries == (64 if exact else 128) else 4
    return Tile(heads, queries, 64, 16 if exact else block_dim, warps)


@triton.jit
def _logsumexp_kernel(
    queries, keys, sinks, partials,
    N, G, W, S, PAST, GROUP_BLOCKS, SPAN, M, scale, softcap,
    queries_b, queries_h, queries_w, queries_d,
    keys_b, keys_n, keys_s, keys_d,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_S: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    # The last tiles see the most positions, so they start first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0).to(tl.int64)
    split = tl.program_id(1).to(tl.int64)
    place = tl.program_id(2).to(tl.int64)
    b, n = place // GROUP_BLOCKS // N, place // GROUP_BLOCKS % N
    r = tl.arange(0, BLOCK_W * BLOCK_G)
    g, w = place % GROUP_BLOCKS * BLOCK_G + r % BLOCK_G, tile * BLOCK_W + r // BLOCK_G
    h, valid = n * G + g, (g < G) & (w < W)
    rows = queries + b * queries_b + h * queries_h + w * queries_w
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    if CHANNELS == BLOCK_D:
        block = load_rows(rows, valid, d, queries_d, D, UP)
    peak = tl.full([BLOCK_W * BLOCK_G], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK_W * BLOCK_G], tl.float32)
    # Two conditions, not `and`: without sinks Triton must not compile the second.
    if sinks is not None:  # noqa: SIM102
        if split == 0:
            peak, mass = sink_of(sinks, h, valid)
    end = tl.minimum((split + 1) * SPAN, tl.minimum(S, PAST + (tile + 1) * BLOCK_W))
    for start in range(split * SPAN, end, BLOCK_S):
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
        sees = (s < S)[None, :] & (s[None, :] <= (PAST + w)[:, None])
        logits = tl.where(sees, logits, float("-inf"))
        before, peak = peak, tl.maximum(peak, tl.max(logits, 1))
        base = finite_or_zero(peak)
        mass = mass * tl.exp2(before - base) + tl.sum(tl.exp2(logits - base[:, None]), 1)
    row = split * M + (b * N * G + h) * W + w
    tl.store(partials + row, log2_sum(peak, mass), mask=valid)


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
    mass = tl.sum(tl.exp2(parts - finite_or_zero(peak)[None, :]), 0)
    tl.store(totals + m, log2_sum(peak, mass), mask=m < M)


class Plan(NamedTuple):
    """How the rows of a launch are cut, and the arguments that all its kernels share."""

    tile: Tile
    row_tiles: int
    places: int
    group_blocks: int
    blocks: int
    numbers: tuple[float, float | None]
    options: dict[str, Any]


def plan_of(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    *,
    scaling: float,
    softcap: float | None,
) -> Plan:
    """Return how to cut the rows of queries, by shape alone."""
    heads, window, dim = queries.shape[1:]
    kv_heads, positions = keys.shape[1:3]
    mixed = queries.dtype != keys.dtype
    precision = "ieee" if mixed else launch.product_precision(queries, keys)
    block_dim = max(16, triton.next_power_of_2(dim))
    tile = tile_of(heads // kv_heads, window, block_dim, exact=precision == "ieee")
    group_blocks = triton.cdiv(heads // kv_heads, tile.heads)
    options = {
        "D": dim, "BLOCK_D": block_dim,
        "BLOCK_G": tile.heads, "BLOCK_W": tile.queries, "BLOCK_S": tile.positions,
        "CHANNELS": tile.channels, "PRECISION": precision,
        "UP": launch.INTERPRETED or mixed, "num_warps": tile.warps,
    }  # fmt: skip
    return Plan(
        tile=tile,
        row_tiles=triton.cdiv(window, tile.queries),
        places=kv_heads * group_blocks,
        group_blocks=group_blocks,
        blocks=triton.cdiv(positions, tile.positions),
        numbers=base_2(scaling, softcap),
        options=options,
    )


def log2_sums(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    sinks: Float[Tensor, " H"] | None,
    plan: Plan,
    *,
    causal: bool,
) -> Float32[Tensor, "B H W"]:
    """Return the logarithm to the base 2 of each query's sum of exponentials, in two launches.

    Query t sees the positions up to S - W + t, or all if not `causal`.
    """
    batch, heads, window, _ = queries.shape
    kv_heads, positions = keys.shape[1:3]
    # The batch size must not count: a sequence's sums may not depend on the rest of the batch.
    parts = launch.splits(plan.row_tiles * plan.places, plan.blocks)
    span = plan.tile.positions * triton.cdiv(plan.blocks, parts)
    splits = triton.cdiv(positions, span)
    past = positions - window if causal else positions
    sizes = kv_heads, heads // kv_heads, window, positions, past, plan.group_blocks
    sinks = None if sinks is None else sinks.contiguous()
    partials = torch.empty(splits, batch, heads, window, dtype=torch.float32, device=keys.device)
    _logsumexp_kernel[(plan.row_tiles, splits, batch * plan.places)](
        queries, keys, sinks, partials, *sizes, span, partials[0].numel(), *plan.numbers,
        *queries.stride(), *keys.stride(), **plan.options,
    )  # fmt: skip
    return partials[0] if splits == 1 else _combine(partials)


def _combine(partials: Float32[Tensor, "splits B H W"]) -> Float32[Tensor, "B H W"]:
    splits, rows = len(partials), partials[0].numel()
    totals = torch.empty_like(partials[0])
    sizes = {"BLOCK_M": BLOCK_M, "BLOCK_SPLITS": triton.next_power_of_2(splits)}
    _combine_kernel[(triton.cdiv(rows, BLOCK_M),)](partials, totals, rows, splits, **sizes)
    return totals

"""The Triton kernels: logits of a bounded number of rows, then the sum of each row's positions."""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float64
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import LOGITS_BYTES, spans
from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.common.triton.largest import BLOCK_S, STAGES, WARPS, read, taken, threshold_of
from kvpolicy_kernels.common.triton.logits import products_by_parts
from kvpolicy_kernels.row_statistics.counting import LAUNCHES, counted_statistics

MOST_ROWS = 128
"""Rows of a tile. A tile reads each key once, and should hold the whole window of a group."""


def unsupported(*tensors: Tensor) -> str | None:
    """Return why the kernels cannot take these queries and keys; None if they can."""
    if len({tensor.dtype for tensor in tensors}) > 1:
        return "the kernel multiplies queries and keys of one dtype only"
    return launch.refusal(*tensors)


@triton.jit(do_not_specialize=["first"])
def _logits_kernel(
    queries, keys, logits, scaling,
    first, N, G, W, S, L,
    queries_b, queries_h, queries_w, queries_d,
    keys_b, keys_n, keys_s, keys_d,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_S: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    tile = first + tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(G * W, ROWS)
    b, n = tile // tiles // N, tile // tiles % N
    r = tile % tiles * ROWS + tl.arange(0, ROWS)
    s = tl.program_id(1).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    exists, inside = r < G * W, s < S
    rows = queries + b * queries_b + (n * G + r // W) * queries_h + r % W * queries_w
    key_rows = keys + b * keys_b + n * keys_n + s * keys_s
    product = products_by_parts(
        rows, exists, queries_d, key_rows, inside, keys_d, D, CHANNELS, PRECISION, UP
    )
    target = logits + row[:, None] * L + s[None, :]
    tl.store(target, product * scaling, mask=exists[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["first", "count"])
def _sums_kernel(
    logits, means,
    first, count, G, W, S, L,
    ROWS: tl.constexpr, BLOCK_S: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    tile = first + tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(G * W, ROWS)
    r = tile % tiles * ROWS + tl.program_id(1)
    exists = r < G * W
    seen = tl.where(exists, S - W + 1 + r % W, 0).to(tl.int32)
    logits += (tl.program_id(0).to(tl.int64) * ROWS + tl.program_id(1)) * L
    rank = tl.minimum(seen, count)
    threshold, room = threshold_of(logits, 1, seen, rank, BLOCK_S, STAGES)
    total = tl.zeros((BLOCK_S,), tl.int64)
    for start in tl.range(0, seen, BLOCK_S, num_stages=STAGES):
        s, inside, numbers = read(logits, 1, start, seen, BLOCK_S)
        largest, room = taken(numbers, inside, threshold, room)
        total += tl.where(largest, s, 0)
    # A row that does not exist has a rank of 0.
    mean = tl.sum(total, 0).to(tl.float64) / tl.maximum(rank, 1).to(tl.float64)
    tl.store(means + tile // tiles * (G * W) + r, mean, mask=exists)


def blocks(dtype: torch.dtype, dim: int) -> dict[str, int]:
    """Return how to cut the product; larger blocks of float32 would spill registers."""
    positions = 64 if dtype == torch.float32 else 128
    options = {"num_warps": 8, "num_stages": 2}
    return {"BLOCK_S": positions, "CHANNELS": launch.channels_at_once(dtype, dim)} | options


def rows_at_once(keys: Float[Tensor, "B N S D"]) -> int:
    """Return how many rows of logits take a sixteenth of the layer's keys and values.

    Scores and attention are held beside them, and all together should take at most an eighth.
    """
    layer = 2 * keys.numel() * keys.element_size()
    return max(16, max(LOGITS_BYTES, layer // 16) // (4 * keys.shape[2]))


def row_statistics(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    count: int,
    *,
    scaling: float,
    softcap: float | None = None,
) -> Float64[Tensor, "B H W"]:
    """Hold logits and sum positions, or count without holding any, whichever launches less."""
    batch, heads, window = queries.shape[:3]
    kv_heads = keys.shape[1]
    means = torch.empty(batch, heads, window, dtype=torch.float64, device=keys.device)
    if means.numel() == 0:
        return means
    of_group = heads // kv_heads * window
    rows = min(MOST_ROWS, max(16, triton.next_power_of_2(of_group)))
    at_once = rows_at_once(keys)
    fitting = rows
    while fitting > at_once:
        fitting //= 2
    tiles = batch * kv_heads * triton.cdiv(of_group, fitting)
    step = min(tiles, at_once // fitting)
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(keys):
        if 2 * triton.cdiv(tiles, step) > LAUNCHES:
            counted_statistics(queries, keys, count, means, scaling=scaling, rows=rows)
        else:
            _held_statistics(
                queries, keys, count, means, scaling, fitting, list(spans(0, tiles, step))
            )
    return means


def _held_statistics(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    count: int,
    means: Float64[Tensor, "B H W"],
    scaling: float,
    rows: int,
    steps: list[slice],
) -> None:
    """Hold the logits of each step's tiles of `rows` rows, and sum positions, in two launches."""
    heads, window, dim = queries.shape[1:]
    kv_heads, positions = keys.shape[1:3]
    # Rows of logits start at multiples of 128 bytes.
    length = triton.cdiv(positions, 32) * 32
    held = (steps[0].stop * rows, length)
    logits = torch.empty(held, dtype=torch.float32, device=keys.device)
    sizes = heads // kv_heads, window, positions, length
    block = blocks(keys.dtype, dim)
    for part in steps:
        tiles = part.stop - part.start
        _logits_kernel[(tiles, triton.cdiv(positions, block["BLOCK_S"]))](
            queries, keys, logits, scaling, part.start, kv_heads, *sizes,
            *queries.stride(), *keys.stride(), D=dim, ROWS=rows,
            PRECISION=launch.product_precision(queries, keys), UP=launch.INTERPRETED, **block,
        )  # fmt: skip
        _sums_kernel[(tiles, min(rows, heads // kv_heads * window))](
            logits, means, part.start, count, *sizes,
            ROWS=rows, BLOCK_S=BLOCK_S, STAGES=STAGES, num_warps=WARPS,
        )  # fmt: skip

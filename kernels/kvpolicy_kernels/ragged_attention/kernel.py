"""The Triton kernels: attention over tiles of positions, then the tiles of each query merged.

Ragged rows and tail are cut into tiles of one size each, whatever the lengths of the heads. So all
programs have about the same amount of work. A program's rows are queries of all heads of a group.
"""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
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
from kvpolicy_kernels.ragged_attention.extra_row import LOG2_E, extra_totals_of
from kvpolicy_kernels.ragged_attention.tiles import span_of, tiles_of

BLOCK_TILES = 16
GROWING = ("T", "TILES", "TAIL_TILES")
"""Arguments that change from token to token. Triton must not compile anew for each value."""


def unsupported(queries: Tensor, *tensors: Tensor) -> str | None:
    """Return why the kernels cannot take these queries, tables and vectors; None if they can."""
    tables = [tensor for tensor in tensors if tensor.ndim > 1]
    others = {tensor.dtype for tensor in tables}
    if others != {queries.dtype}:
        return (
            f"the kernel takes one dtype, but queries are {queries.dtype}, keys and values "
            f"{', '.join(sorted(map(str, others)))}"
        )
    vectors = (tensor[:, None] for tensor in tensors if tensor.ndim == 1)
    return launch.refusal(queries, *tables, *vectors)


def blocks_of(rows: int, block_dim: int, *, exact: bool) -> tuple[int, int]:
    """Choose how many rows and positions a program multiplies at once.

    Tensor cores take at least 16 of each. The choice fits 99 KiB of shared memory. Exact products
    in float32 run without tensor cores, and hold their factors in registers.
    """
    most = 16 if exact else 64 if block_dim <= 128 else 32
    positions = 64 if not exact and block_dim <= 128 else 32
    return max(16, min(most, triton.next_power_of_2(rows))), positions


@triton.jit(do_not_specialize=GROWING)
def _attend_kernel(
    queries, ragged_keys, ragged_values, ragged_bias, keys, values, padding, tiles, outputs,
    totals,
    N, G, Q, T, TILES, TAIL_TILES, TAIL_SPAN, scale, softcap,
    queries_b, queries_h, queries_q,
    ragged_keys_r, ragged_values_r,
    keys_b, keys_n, keys_t,
    values_b, values_n, values_t,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0).to(tl.int64)
    r = tl.program_id(1).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    g, q, valid = r % G, r // G, r < G * Q
    if tile < TILES:
        head, start, size = (
            tl.load(tiles + 3 * tile), tl.load(tiles + 3 * tile + 1), tl.load(tiles + 3 * tile + 2)
        )  # fmt: skip
        key_rows, key_stride = ragged_keys + start * ragged_keys_r, ragged_keys_r
        value_rows, value_stride = ragged_values + start * ragged_values_r, ragged_values_r
        hidden, last = start * 0, q * 0 + size
    else:
        head = (tile - TILES) // TAIL_TILES
        start = (tile - TILES) % TAIL_TILES * TAIL_SPAN
        size = tl.minimum(T - start, TAIL_SPAN)
        b, n = head // N, head % N
        key_rows, key_stride = keys + b * keys_b + n * keys_n + start * keys_t, keys_t
        value_rows = values + b * values_b + n * values_n + start * values_t
        value_stride = values_t
        hidden, last = start * 0, T - Q + q - start
        if padding is not None:
            hidden = tl.load(padding + b).to(tl.int64) - start
    h = head % N * G + g
    rows = queries + head // N * queries_b + h * queries_h + q * queries_q
    d, dv = tl.arange(0, BLOCK_D).to(tl.int64), tl.arange(0, BLOCK_DV).to(tl.int64)
    if CHANNELS == BLOCK_D:
        block = load_rows(rows, valid, d, 1, D, UP)
    peak = tl.full([BLOCK_R], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK_R], tl.float32)
    output = tl.zeros([BLOCK_R, BLOCK_DV], tl.float32)
    for at in range(0, size, BLOCK_S):
        s = at + tl.arange(0, BLOCK_S).to(tl.int64)
        inside = (s < size) & (s >= hidden)
        those = key_rows + s * key_stride
        if CHANNELS == BLOCK_D:
            seen = load_rows(those, inside, d, 1, D, UP)
            product = tl.dot(block, tl.trans(seen), input_precision=PRECISION)
        else:
            product = products_by_parts(
                rows, valid, 1, those, inside, 1, D, CHANNELS, PRECISION, UP
            )
        logits = capped(product, scale, softcap)
        if ragged_bias is not None:
            # Positions of the tail have none.
            biased = tl.where(tile < TILES, size, 0)
            logits += tl.load(ragged_bias + start + s, mask=s < biased, other=0)[None, :]
        sees = inside[None, :] & (s[None, :] <= last[:, None])
        logits = tl.where(sees, logits, float("-inf"))
        before, peak = peak, tl.maximum(peak, tl.max(logits, 1))
        base = finite_or_zero(peak)
        weights = tl.exp2(logits - base[:, None])
        shrunk = tl.exp2(before - base)
        mass = mass * shrunk + tl.sum(weights, 1)
        value = load_rows(value_rows + s * value_stride, inside, dv, 1, DV, UP)
        output *= shrunk[:, None]
        output += tl.dot(weights.to(value.dtype), value, input_precision=PRECISION)
    row = tile * G * Q + r
    tl.store(totals + row, log2_sum(peak, mass), mask=valid)
    target = outputs + row[:, None] * DV + dv[None, :]
    # Without mass the output is zero.
    output /= tl.where(mass == 0, 1.0, mass)[:, None]
    tl.store(target, output, mask=valid[:, None] & (dv < DV)[None, :])


@triton.jit(do_not_specialize=GROWING)
def _merge_kernel(
    outputs, totals, bounds, sinks, extra_totals, extra_values, merged,
    N, G, Q, TILES, TAIL_TILES,
    DV: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_TILES: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    head, r = place // (G * Q), place % (G * Q)
    first = tl.load(bounds + head)
    own = tl.load(bounds + head + 1) - first
    dv = tl.arange(0, BLOCK_DV).to(tl.int64)
    h = head % N * G + r % G
    peak = tl.full([1], float("-inf"), tl.float32)
    mass = tl.zeros([1], tl.float32)
    if sinks is not None:
        peak, mass = sink_of(sinks, h + tl.arange(0, 1), True)
    output = tl.zeros([BLOCK_DV], tl.float32)
    if extra_totals is not None:
        # The extra row is a tile of one position.
        extra = tl.load(extra_totals + place + tl.arange(0, 1))
        sink, peak = peak, tl.maximum(peak, extra)
        own_share = tl.exp2(extra - finite_or_zero(peak))
        mass = mass * tl.exp2(sink - finite_or_zero(peak)) + own_share
        output = tl.load(extra_values + head * DV + dv, mask=dv < DV, other=0) * own_share
    for at in range(0, own + TAIL_TILES, BLOCK_TILES):
        i = at + tl.arange(0, BLOCK_TILES).to(tl.int64)
        there = i < own + TAIL_TILES
        tile = tl.where(i < own, first + i, TILES + head * TAIL_TILES + i - own)
        row = tile * G * Q + r
        total = tl.load(totals + row, mask=there, other=float("-inf"))
        part = tl.load(
            outputs + row[:, None] * DV + dv[None, :],
            mask=there[:, None] & (dv < DV)[None, :],
            other=0,
        )
        before, peak = peak, tl.maximum(peak, tl.max(total, 0))
        base = finite_or_zero(peak)
        shares = tl.exp2(total - base)
        shrunk = tl.exp2(before - base)
        mass = mass * shrunk + tl.sum(shares, 0)
        output = output * shrunk + tl.sum(part * shares[:, None], 0)
    row = (head // N * N * G + h) * Q + r // G
    tl.store(merged + row * DV + dv, output / tl.where(mass == 0, 1.0, mass), mask=dv < DV)


def ragged_attention(
    queries: Float[Tensor, "B H Q D"],
    ragged_keys: Float[Tensor, "R D"],
    ragged_values: Float[Tensor, "R Dv"],
    lengths: Int[Tensor, "B N"],
    keys: Float[Tensor, "B N T D"],
    values: Float[Tensor, "B N T Dv"],
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    padding: Int[Tensor, " B"] | None = None,
    extra_keys: Float[Tensor, "B N D"] | None = None,
    extra_values: Float[Tensor, "B N Dv"] | None = None,
    extra_bias: Float[Tensor, "B N"] | None = None,
    ragged_bias: Float[Tensor, " R"] | None = None,
) -> Float[Tensor, "B H Q Dv"]:
    """Attend to all tiles in one launch, and merge them in a second one."""
    batch, heads, count, dim = queries.shape
    kv_heads, tail, value_dim = keys.shape[1], keys.shape[2], values.shape[-1]
    places, group = batch * kv_heads, heads // kv_heads
    rows = group * count
    queries, ragged_keys, ragged_values, keys, values = map(
        _with_dense_rows, (queries, ragged_keys, ragged_values, keys, values)
    )
    tiles = tiles_of(tuple(lengths.flatten().tolist()), rows * value_dim, keys.device)
    tail_span = span_of(tail, places * tail, places, rows * value_dim)
    tail_tiles = triton.cdiv(tail, tail_span)
    programs = tiles.total + places * tail_tiles
    outputs = torch.empty(programs, rows, value_dim, dtype=torch.float32, device=keys.device)
    totals = outputs.new_empty(programs, rows)
    # The interpreter truncates where a GPU rounds: round in PyTorch.
    dtype = torch.float32 if launch.INTERPRETED else values.dtype
    merged = torch.empty(batch, heads, count, value_dim, dtype=dtype, device=keys.device)
    if sinks is not None:
        sinks = sinks.contiguous()
    if ragged_bias is not None:
        ragged_bias = (ragged_bias.float() * LOG2_E).contiguous()
    extra_totals = None
    if extra_keys is not None and extra_values is not None and extra_bias is not None:
        extra_totals = extra_totals_of(queries, extra_keys, extra_bias, scaling, softcap)
        extra_values = extra_values.float().contiguous()
    precision = launch.product_precision(keys)
    block_d, block_dv = (max(16, triton.next_power_of_2(size)) for size in (dim, value_dim))
    block_r, block_s = blocks_of(rows, max(block_d, block_dv), exact=precision == "ieee")
    with torch.cuda.device_of(keys):
        _attend_kernel[(programs, triton.cdiv(rows, block_r))](
            queries, ragged_keys, ragged_values, ragged_bias, keys, values, padding, tiles.table,
            outputs, totals, kv_heads, group, count, tail, tiles.total, tail_tiles, tail_span,
            *base_2(scaling, softcap), *queries.stride()[:3], ragged_keys.stride(0),
            ragged_values.stride(0), *keys.stride()[:3], *values.stride()[:3],
            D=dim, DV=value_dim, BLOCK_D=block_d, BLOCK_DV=block_dv, BLOCK_R=block_r,
            BLOCK_S=block_s, CHANNELS=16 if precision == "ieee" else block_d,
            PRECISION=precision, UP=launch.INTERPRETED,
        )  # fmt: skip
        _merge_kernel[(places * rows,)](
            outputs, totals, tiles.bounds, sinks, extra_totals, extra_values, merged,
            kv_heads, group, count, tiles.total, tail_tiles,
            DV=value_dim, BLOCK_DV=block_dv, BLOCK_TILES=BLOCK_TILES,
        )  # fmt: skip
    return merged.to(values.dtype)


def _with_dense_rows(table: Float[Tensor, "*lead D"]) -> Float[Tensor, "*lead D"]:
    return table if table.stride(-1) == 1 else table.contiguous()

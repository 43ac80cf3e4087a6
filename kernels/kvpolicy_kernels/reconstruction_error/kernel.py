"""The Triton kernel: a program reads a block of values once, for all query heads of the group."""

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

from kvpolicy_kernels.common.pytorch import odds
from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.common.triton.logits import load_rows

LEAST_REST = tl.constexpr(odds.LEAST_REST)


class ErrorTile(NamedTuple):
    """How many positions, rows of a factor and channels a program multiplies at once."""

    positions: int
    rank: int
    channels: int
    warps: int = 8


def unsupported(*tensors: Tensor) -> str | None:
    """Return why the kernel cannot take these values, outputs and factors; None if it can."""
    return launch.refusal(*tensors)


def error_tile(block_dim: int, exact: bool, projected: bool) -> ErrorTile:
    """Choose a tile by shape alone. It spills no registers and fits 99 KiB of shared memory.

    If all channels of the values fit into registers, they stay there from head to head. Exact
    products in float32 run without tensor cores and hold all their channels in registers.
    """
    if not projected:
        return ErrorTile(64, 1, block_dim)
    if exact:
        return ErrorTile(32, 64, 16, warps=4)
    return ErrorTile(128, 32, block_dim) if block_dim <= 128 else ErrorTile(128, 64, 64)


@triton.jit
def _missing(output, d, output_d, values, D: tl.constexpr):
    return tl.load(output + d * output_d, mask=d < D, other=0).to(tl.float32)[None, :] - values


@triton.jit
def _squares(
    missing, factor, R, factors_r, factors_d, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    squares = tl.zeros([missing.shape[0]], tl.float32)
    for start in range(0, R, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R).to(tl.int64)
        rows = load_rows(factor + r * factors_r, r < R, d, factors_d, D, True)
        projected = tl.dot(missing, tl.trans(rows), input_precision=PRECISION)
        squares += tl.sum(projected * projected, 1)
    return squares


@triton.jit
def _squares_by_channels(
    value_rows, inside, values_d, output, output_d, factor, R, factors_r, factors_d,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    squares = tl.zeros([value_rows.shape[0]], tl.float32)
    for start in range(0, R, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R).to(tl.int64)
        projected = tl.zeros([value_rows.shape[0], BLOCK_R], tl.float32)
        for channel in range(0, BLOCK_D, CHANNELS):
            d = channel + tl.arange(0, CHANNELS).to(tl.int64)
            values = load_rows(value_rows, inside, d, values_d, D, True)
            missing = _missing(output, d, output_d, values, D)
            rows = load_rows(factor + r * factors_r, r < R, d, factors_d, D, True)
            projected = tl.dot(missing, tl.trans(rows), projected, input_precision=PRECISION)
        squares += tl.sum(projected * projected, 1)
    return squares


@triton.jit
def _error_kernel(
    attention, values, output, factors, errors, known, known_errors, N, G, R, S, tau,
    attention_b, attention_h, attention_s,
    values_b, values_n, values_s, values_d,
    output_b, output_h, output_d, factors_h, factors_r, factors_d,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    s = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    place = tl.program_id(1).to(tl.int64)
    b, n = place // N, place % N
    inside = s < S
    value_rows = values + b * values_b + n * values_n + s * values_s
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    block = load_rows(value_rows, inside, d, values_d, D, True)
    for h in range(n * G, n * G + G):
        o = output + b * output_b + h * output_h
        if factors is None:
            missing = _missing(o, d, output_d, block, D)
            squares = tl.sum(missing * missing, 1)
        elif CHANNELS == BLOCK_D:
            squares = _squares(
                _missing(o, d, output_d, block, D), factors + h * factors_h,
                R, factors_r, factors_d, D, BLOCK_D, BLOCK_R, PRECISION,
            )  # fmt: skip
        else:
            squares = _squares_by_channels(
                value_rows, inside, values_d, o, output_d, factors + h * factors_h,
                R, factors_r, factors_d, D, BLOCK_D, CHANNELS, BLOCK_R, PRECISION,
            )  # fmt: skip
        norm = tl.sqrt(squares)
        if tau is not None:
            power = tl.exp2(tau * tl.log2(tl.where(norm == 0, 1.0, norm)))
            norm = tl.where(norm == 0, 0.0, power)
        a = attention + b * attention_b + h * attention_h + s * attention_s
        a = tl.load(a, mask=inside, other=0).to(tl.float32)
        error = norm * (a / tl.maximum(1 - a, LEAST_REST))
        head = b * N * G + h
        if known is not None:
            error = tl.where(s == tl.load(known + head), tl.load(known_errors + head), error)
        tl.store(errors + head * S + s, error, mask=inside)


def reconstruction_error(
    attention: Float[Tensor, "B H S"],
    values: Float[Tensor, "B N S D"],
    output: Float[Tensor, "B H D"],
    factors: Float[Tensor, "H R D"] | None,
    *,
    tau: float = 1.0,
    known: tuple[Int64[Tensor, "B H 1"], Float32[Tensor, "B H 1"]] | None = None,
) -> Float32[Tensor, "B H S"]:
    """Launch one program for each block of positions of a key/value head."""
    batch, heads, positions = attention.shape
    kv_heads, dim = values.shape[1], values.shape[-1]
    precision = launch.product_precision(values)
    block_dim = max(16, triton.next_power_of_2(dim))
    tile = error_tile(block_dim, exact=precision == "ieee", projected=factors is not None)
    errors = torch.empty(batch, heads, positions, dtype=torch.float32, device=values.device)
    rank, strides = (0, (0, 0, 0)) if factors is None else (factors.shape[1], factors.stride())
    with torch.cuda.device_of(values):
        _error_kernel[(triton.cdiv(positions, tile.positions), batch * kv_heads)](
            attention, values, output, factors, errors, *(known or (None, None)),
            kv_heads, heads // kv_heads, rank, positions, None if tau == 1 else tau,
            *attention.stride(), *values.stride(), *output.stride(), *strides,
            D=dim, BLOCK_D=block_dim, BLOCK_S=tile.positions, CHANNELS=tile.channels,
            BLOCK_R=tile.rank, PRECISION=precision, num_warps=tile.warps,
        )  # fmt: skip
    return errors

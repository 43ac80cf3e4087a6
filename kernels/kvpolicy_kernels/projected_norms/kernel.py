"""The Triton kernel: a program multiplies some values with all weights of their group's heads."""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.common.triton.logits import load_rows, products_by_parts


class ProductTile(NamedTuple):
    """How many positions, rows of weights and channels a program multiplies at once."""

    positions: int
    rows: int
    channels: int
    warps: int
    stages: int


def unsupported(*tensors: Tensor) -> str | None:
    """Return why the kernel cannot take these values and weights; None if it can."""
    return launch.refusal(*tensors)


def product_tile(dim: int, exact: bool) -> ProductTile:
    """Choose a tile by the head dimension; larger blocks of float32 would spill registers."""
    if exact:
        return ProductTile(64, 64, 16, 8, 2)
    channels = max(16, triton.next_power_of_2(dim))
    return ProductTile(128, 64 if channels <= 128 else 32, channels, 8, 3)


@triton.jit
def _projected_norms_kernel(
    values, weights, norms,
    N, G, S, R,
    values_b, values_n, values_s, values_d,
    weights_h, weights_r, weights_d,
    D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_R: tl.constexpr, CHANNELS: tl.constexpr,
    SQUARES: tl.constexpr, PRECISION: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    b, n = place // N, place % N
    s = tl.program_id(1).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    inside = s < S
    rows = values + b * values_b + n * values_n + s * values_s
    d = tl.arange(0, CHANNELS).to(tl.int64)
    if CHANNELS >= D:
        block = load_rows(rows, inside, d, values_d, D, UP)
    total = tl.zeros([BLOCK_S], tl.float32)
    for g in range(G):
        head = weights + (n * G + g) * weights_h
        norm = tl.zeros([BLOCK_S], tl.float32)
        for start in range(0, R, BLOCK_R):
            r = start + tl.arange(0, BLOCK_R)
            of_head = head + r.to(tl.int64) * weights_r
            if CHANNELS >= D:
                weight = load_rows(of_head, r < R, d, weights_d, D, UP)
                projected = tl.dot(block, tl.trans(weight), input_precision=PRECISION)
            else:
                projected = products_by_parts(
                    rows, inside, values_d, of_head, r < R, weights_d, D, CHANNELS, PRECISION, UP
                )
            norm += tl.sum(projected * projected if SQUARES else tl.abs(projected), 1)
        total += tl.sqrt(norm) if SQUARES else norm
    tl.store(norms + place * S + s, total / G, mask=inside)


def projected_norms(
    values: Float[Tensor, "B N S Dv"],
    weights: Float[Tensor, "H R Dv"],
    *,
    order: Literal[1, 2] = 1,
) -> Float32[Tensor, "B N S"]:
    """Project and add up in one launch: no projected value leaves its program."""
    batch, kv_heads, positions, dim = values.shape
    norms = torch.empty(batch, kv_heads, positions, dtype=torch.float32, device=values.device)
    if norms.numel() == 0:
        return norms
    precision = launch.product_precision(values, weights)
    tile = product_tile(dim, exact=precision == "ieee")
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(values):
        _projected_norms_kernel[(batch * kv_heads, triton.cdiv(positions, tile.positions))](
            values, weights, norms,
            kv_heads, weights.shape[0] // kv_heads, positions, weights.shape[1],
            *values.stride(), *weights.stride(),
            D=dim, BLOCK_S=tile.positions, BLOCK_R=tile.rows, CHANNELS=tile.channels,
            SQUARES=order == 2, PRECISION=precision,
            UP=launch.INTERPRETED or values.dtype != weights.dtype,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return norms

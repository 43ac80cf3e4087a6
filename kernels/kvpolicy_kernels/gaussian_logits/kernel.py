"""The Triton kernel: a program multiplies some keys with the covariance of one query head."""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.common.triton.logits import load_rows, products_by_parts


class LogitTile(NamedTuple):
    """How many keys, columns and channels a program multiplies at once, and its precision."""

    positions: int
    columns: int
    channels: int
    precision: str


def unsupported(*tensors: Tensor) -> str | None:
    """Return why the kernel cannot take these keys and statistics; None if it can."""
    return launch.refusal(*tensors)


def logit_tile(exact: bool) -> LogitTile:
    """Choose a tile. Keys in half precision are multiplied as three tf32 products."""
    return LogitTile(64, 32, 16, "ieee") if exact else LogitTile(64, 64, 32, "tf32x3")


@triton.jit
def _logits_kernel(
    keys, mean, covariance, logits,
    H, G, S, linear, quadratic,
    keys_b, keys_n, keys_s, keys_d,
    D: tl.constexpr, SPREAD: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    b, n = head // H, head % H // G
    s = tl.program_id(1).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    rows = keys + b * keys_b + n * keys_n + s * keys_s
    total = tl.zeros([BLOCK_S], tl.float32)
    for column in range(0, D, BLOCK_C):
        c = column + tl.arange(0, BLOCK_C).to(tl.int64)
        some = load_rows(rows, s < S, c, keys_d, D, True)
        factor = tl.load(mean + head * D + c, mask=c < D, other=0.0)[None, :] * linear
        if SPREAD:
            columns = covariance + head * D * D + c
            products = products_by_parts(
                rows, s < S, keys_d, columns, c < D, D, D, CHANNELS, PRECISION, True
            )
            factor = factor + products * quadratic
        total += tl.sum(some * factor, 1)
    tl.store(logits + head * S + s, total, mask=s < S)


def gaussian_logits(
    keys: Float[Tensor, "B N S D"],
    mean: Float[Tensor, "B H D"],
    covariance: Float[Tensor, "B H D D"] | None,
    *,
    scaling: float,
) -> Float32[Tensor, "B H S"]:
    """Compute all logits in one launch."""
    batch, heads, dim = mean.shape
    positions = keys.shape[2]
    logits = torch.empty(batch, heads, positions, dtype=torch.float32, device=keys.device)
    if logits.numel() == 0:
        return logits
    middle = mean.float().contiguous()
    spread = middle if covariance is None else covariance.float().contiguous()
    tile = logit_tile(exact=launch.product_precision(keys) == "ieee")
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(keys):
        _logits_kernel[(batch * heads, triton.cdiv(positions, tile.positions))](
            keys, middle, spread, logits,
            heads, heads // keys.shape[1], positions, scaling, scaling**2 / 2, *keys.stride(),
            D=dim, SPREAD=covariance is not None, BLOCK_S=tile.positions, BLOCK_C=tile.columns,
            CHANNELS=tile.channels, PRECISION=tile.precision, num_warps=8,
        )  # fmt: skip
    return logits

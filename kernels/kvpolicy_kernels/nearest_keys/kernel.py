"""The Triton kernel: a program compares some rows with all other keys, block by block."""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.common.triton.logits import load_rows, products_by_parts
from kvpolicy_kernels.nearest_keys.reference import LEAST, NearestKeys


class PairTile(NamedTuple):
    """How many rows, other keys and channels a program multiplies at once."""

    rows: int
    others: int
    channels: int
    warps: int


def unsupported(*tensors: Tensor) -> str | None:
    """Return why the kernel cannot take these keys, others, rows and marks; None if it can."""
    keys, others = tensors[:2]
    if keys.dtype != others.dtype:
        return "the kernel multiplies keys of one dtype only"
    return launch.refusal(*tensors)


def pair_tile(dim: int, exact: bool) -> PairTile:
    """Choose a tile by the head dimension; larger blocks of float32 would spill registers."""
    if exact:
        return PairTile(64, 64, 16, 8)
    return PairTile(64, 64, max(16, triton.next_power_of_2(dim)), 4)


@triton.jit
def _nearest_kernel(
    keys, rows, others, norms, is_other, slots, cosines,
    N, S, E, K,
    keys_b, keys_n, keys_s, keys_d,
    others_b, others_n, others_s, others_d,
    D: tl.constexpr, LEAST: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    b, n = head // N, head % N
    e = tl.program_id(1).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    inside = e < E
    row = tl.load(rows + head * E + e, mask=inside, other=S).to(tl.int64)
    valid = (row >= 0) & (row < S)
    keys += b * keys_b + n * keys_n + row * keys_s
    others += b * others_b + n * others_n
    d = tl.arange(0, CHANNELS).to(tl.int64)
    squares = tl.zeros([BLOCK_E], tl.float32)
    for channel in range(0, D, CHANNELS):
        part = load_rows(keys, valid, channel + d, keys_d, D, True)
        squares += tl.sum(part * part, 1)
    own_norms = tl.maximum(tl.sqrt(squares), LEAST)
    if CHANNELS >= D:
        own = load_rows(keys, valid, d, keys_d, D, UP)
    best = tl.full([BLOCK_E], float("-inf"), tl.float32)
    slot = tl.zeros([BLOCK_E], tl.int64)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        exists = k < K
        if CHANNELS >= D:
            block = load_rows(others + k * others_s, exists, d, others_d, D, UP)
            products = tl.dot(own, tl.trans(block), input_precision=PRECISION)
        else:
            products = products_by_parts(
                keys, valid, keys_d, others + k * others_s, exists, others_d,
                D, CHANNELS, PRECISION, UP,
            )  # fmt: skip
        other_norms = tl.maximum(tl.load(norms + head * K + k, mask=exists, other=1.0), LEAST)
        pairs = products / own_norms[:, None] / other_norms[None, :]
        if is_other is not None:
            exists = exists & (tl.load(is_other + head * K + k, mask=exists, other=0) != 0)
        pairs = tl.where(exists[None, :], pairs, float("-inf"))
        largest = tl.max(pairs, 1)
        first = tl.min(tl.where(pairs == largest[:, None], k[None, :], K), 1)
        better = largest > best
        slot = tl.where(better, first, slot)
        best = tl.where(better, largest, best)
    tl.store(slots + head * E + e, slot, mask=inside)
    tl.store(cosines + head * E + e, tl.maximum(best, -1.0), mask=inside)


def nearest_keys(
    keys: Float[Tensor, "B N S D"],
    rows: Int[Tensor, "B N E"],
    others: Float[Tensor, "B N K D"],
    is_other: Bool[Tensor, "B N K"] | None,
) -> NearestKeys:
    """Match all rows in one launch, after one for the norms of the others."""
    batch, heads, positions, dim = keys.shape
    slots = torch.empty(rows.shape, dtype=torch.int32, device=keys.device)
    cosines = slots.new_empty(slots.shape, dtype=torch.float32)
    if slots.numel() == 0:
        return NearestKeys(slots, cosines)
    norms = torch.linalg.vector_norm(others, dim=-1, dtype=torch.float32).contiguous()
    precision = launch.product_precision(keys)
    tile = pair_tile(dim, exact=precision == "ieee")
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(keys):
        _nearest_kernel[(batch * heads, triton.cdiv(rows.shape[2], tile.rows))](
            keys, rows.contiguous(), others, norms,
            None if is_other is None else is_other.contiguous(), slots, cosines,
            heads, positions, rows.shape[2], others.shape[2], *keys.stride(), *others.stride(),
            D=dim, LEAST=LEAST, BLOCK_E=tile.rows, BLOCK_K=tile.others, CHANNELS=tile.channels,
            PRECISION=precision, UP=launch.INTERPRETED, num_warps=tile.warps,
        )  # fmt: skip
    return NearestKeys(slots, cosines)

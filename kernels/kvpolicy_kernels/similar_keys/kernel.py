"""The Triton kernel: a program compares some keys with blocks of keys until all have found one."""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from kvpolicy_kernels.common.pytorch.sums import sums_dtype
from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.common.triton.logits import load_rows, products_by_parts
from kvpolicy_kernels.similar_keys.reference import LEAST, Retain, SimilarKeys


class PairTile(NamedTuple):
    """How many keys, other keys and channels a program multiplies at once."""

    rows: int
    columns: int
    channels: int
    warps: int


def unsupported(*tensors: Tensor) -> str | None:
    """Return why the kernel cannot take these keys; None if it can."""
    return launch.refusal(*tensors)


def pair_tile(dim: int, exact: bool) -> PairTile:
    """Choose a tile by the head dimension; larger blocks of float32 would spill registers."""
    if exact:
        return PairTile(64, 64, 16, 8)
    return PairTile(64, 64, max(16, triton.next_power_of_2(dim)), 4 if dim <= 128 else 8)


@triton.jit
def _similar_kernel(
    keys, norms, positions, cosines,
    N, S, threshold,
    keys_b, keys_n, keys_s, keys_d,
    D: tl.constexpr, LAST: tl.constexpr, LEAST: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    b, n = head // N, head % N
    r = tl.program_id(1).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    valid = r < S
    keys += b * keys_b + n * keys_n
    norms += head * S
    d = tl.arange(0, CHANNELS).to(tl.int64)
    if CHANNELS >= D:
        own = load_rows(keys + r * keys_s, valid, d, keys_d, D, UP)
    own_norms = tl.maximum(tl.load(norms + r, mask=valid, other=1.0), LEAST)
    # Places are 32 bits wide inside the loop, and 64 where they become addresses.
    place = r.to(tl.int32)
    found = tl.full([BLOCK_R], -1, tl.int32)
    cosine = tl.zeros([BLOCK_R], tl.float32)
    # What stands for the cosine of a key without a similar one.
    with_first = tl.zeros([BLOCK_R], tl.float32)
    blocks = tl.cdiv(S, BLOCK_C)
    step = blocks * 0
    left = step + 1
    while (step < blocks) & (left > 0):
        block = blocks - 1 - step if LAST else step
        other = (block * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int32)
        c, inside = other.to(tl.int64), other < S
        if CHANNELS >= D:
            others = load_rows(keys + c * keys_s, inside, d, keys_d, D, UP)
            products = tl.dot(own, tl.trans(others), input_precision=PRECISION)
        else:
            products = products_by_parts(
                keys + r * keys_s, valid, keys_d, keys + c * keys_s, inside, keys_d,
                D, CHANNELS, PRECISION, UP,
            )  # fmt: skip
        other_norms = tl.maximum(tl.load(norms + c, mask=inside, other=1.0), LEAST)
        pairs = products / own_norms[:, None] / other_norms[None, :]
        similar = (pairs > threshold) & inside[None, :] & (place[:, None] != other[None, :])
        if LAST:
            best = tl.max(tl.where(similar, other[None, :], -1), 1)
        else:
            best = tl.min(tl.where(similar, other[None, :], S), 1)
        hit = (found < 0) & (best >= 0) & (best < S)
        of_best = tl.sum(tl.where(other[None, :] == best[:, None], pairs, 0.0), 1)
        cosine = tl.where(hit, of_best, cosine)
        found = tl.where(hit, best, found)
        with_first += tl.sum(tl.where((other == 0)[None, :], pairs, 0.0), 1)
        left = tl.sum(((found < 0) & valid).to(tl.int32), 0)
        step += 1
    cosine = tl.where(found < 0, tl.where(r == 0, 0.0, with_first), cosine)
    tl.store(positions + head * S + r, tl.maximum(found, 0).to(tl.int64), mask=valid)
    tl.store(cosines + head * S + r, cosine, mask=valid)


def similar_keys(
    keys: Float[Tensor, "B N S D"], *, threshold: float, retain: Retain
) -> SimilarKeys:
    """Compare pairs of keys in one launch, after one for their norms."""
    batch, heads, length, dim = keys.shape
    positions = torch.empty(batch, heads, length, dtype=torch.int64, device=keys.device)
    cosines = positions.new_empty(positions.shape, dtype=sums_dtype(keys.device))
    if positions.numel() == 0:
        return SimilarKeys(positions, cosines)
    norms = torch.linalg.vector_norm(keys, dim=-1, dtype=torch.float32)
    precision = launch.product_precision(keys)
    tile = pair_tile(dim, exact=precision == "ieee")
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(keys):
        _similar_kernel[(batch * heads, triton.cdiv(length, tile.rows))](
            keys, norms, positions, cosines, heads, length, threshold, *keys.stride(),
            D=dim, LAST=retain == "last", LEAST=LEAST, BLOCK_R=tile.rows, BLOCK_C=tile.columns,
            CHANNELS=tile.channels, PRECISION=precision, UP=launch.INTERPRETED,
            num_warps=tile.warps,
        )  # fmt: skip
    return SimilarKeys(positions, cosines)

"""The Triton kernels: one adds up directions, one compares each key with the mean direction."""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.direction_cosines.reference import TINY

BLOCK_NUMBERS = 1024
"""Numbers of the keys that a program has at once, in float64."""


def unsupported(*tensors: Tensor) -> str | None:
    """Return why the kernels cannot take these keys; None if they can."""
    return launch.refusal(*tensors)


@triton.jit
def _keys_of(keys, s, S, d, keys_s, keys_d, TINY, D: tl.constexpr):
    """Load some keys in float64, and 1 over their norms."""
    inside = (s < S)[:, None] & (d < D)[None, :]
    some = tl.load(keys + s[:, None] * keys_s + d[None, :] * keys_d, mask=inside, other=0)
    some = some.to(tl.float32).to(tl.float64)
    return some, 1.0 / tl.maximum(tl.sqrt(tl.sum(some * some, 1)), TINY)


@triton.jit
def _sums_kernel(
    keys, partials,
    N, S, SPAN,
    keys_b, keys_n, keys_s, keys_d, partials_split, TINY,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    split, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    keys += head // N * keys_b + head % N * keys_n
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    total = tl.zeros([BLOCK_D], tl.float64)
    for start in range(split * SPAN, tl.minimum(split * SPAN + SPAN, S), BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        some, scale = _keys_of(keys, s, S, d, keys_s, keys_d, TINY, D)
        total += tl.sum(some * scale[:, None], 0)
    tl.store(partials + split * partials_split + head * D + d, total, mask=d < D)


@triton.jit
def _cosines_kernel(
    keys, anchor, cosines,
    N, S,
    keys_b, keys_n, keys_s, keys_d, TINY,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    keys += head // N * keys_b + head % N * keys_n
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    s = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    middle = tl.load(anchor + head * D + d, mask=d < D, other=0.0)
    some, scale = _keys_of(keys, s, S, d, keys_s, keys_d, TINY, D)
    cosine = tl.sum(some * middle[None, :], 1) * scale
    tl.store(cosines + head * S + s, cosine.to(tl.float32), mask=s < S)


def direction_cosines(keys: Float[Tensor, "B N S D"]) -> Float32[Tensor, "B N S"]:
    """Add up directions in one launch, and compare all keys in another one."""
    batch, heads, positions, dim = keys.shape
    cosines = torch.empty(batch, heads, positions, dtype=torch.float32, device=keys.device)
    if cosines.numel() == 0:
        return cosines
    block = triton.next_power_of_2(dim)
    rows = max(1, BLOCK_NUMBERS // block)
    blocks = triton.cdiv(positions, rows)
    # The batch size must not count: a sequence's sums may not depend on the rest of the batch.
    span = rows * triton.cdiv(blocks, launch.splits(heads, blocks))
    splits = triton.cdiv(positions, span)
    partials = torch.empty(splits, batch, heads, dim, dtype=torch.float64, device=keys.device)
    sizes = {"D": dim, "BLOCK_D": block, "BLOCK_S": rows}
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(keys):
        _sums_kernel[(splits, batch * heads)](
            keys, partials, heads, positions, span, *keys.stride(), partials.stride(0), TINY,
            **sizes,
        )  # fmt: skip
        anchor = F.normalize(partials.sum(0), dim=-1, eps=TINY)
        _cosines_kernel[(blocks, batch * heads)](
            keys, anchor, cosines, heads, positions, *keys.stride(), TINY, **sizes
        )
    return cosines

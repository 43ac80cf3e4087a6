"""The Triton kernel: one program rotates a block of one head's keys, in float32."""

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
from kvpolicy_kernels.rerotate_keys.reference import Tables

BLOCK_NUMBERS = 2048
"""Numbers in a block of keys or of a table. A program holds six blocks in registers."""


def unsupported(*tensors: Tensor) -> str | None:
    """Return why the kernel cannot take these keys and tables; None if it can."""
    return launch.refusal(*tensors)


@triton.jit
def _table(table, b, n, s, d, inside, stride_b, stride_n, stride_s, stride_d):
    place = table + b * stride_b + n * stride_n + s * stride_s + d * stride_d
    return tl.load(place, mask=inside, other=0).to(tl.float32)


@triton.jit
def _rerotate_keys_kernel(
    keys, rows, old_cos, old_sin, new_cos, new_sin, rotated,
    N, K, rows_b, rows_k,
    keys_b, keys_n, keys_s, keys_d,
    old_b, old_n, old_s, old_d,
    new_b, new_n, new_s, new_d,
    D: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    b, n = head // N, head % N
    k = (tl.program_id(1).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K))[:, None]
    d = tl.arange(0, BLOCK_D).to(tl.int64)[None, :]
    # The other channel of the pair, and its sign: a quarter turn takes (x, y) to (-y, x).
    if INTERLEAVED:
        other = d ^ 1
        sign = tl.where(d % 2 == 0, -1.0, 1.0)
    else:
        other = tl.where(d < R // 2, d + R // 2, d - R // 2)
        sign = tl.where(d < R // 2, -1.0, 1.0)
    s = k if rows is None else tl.load(rows + b * rows_b + k * rows_k, mask=k < K, other=0)
    rotary = (k < K) & (d < R)
    cos_o = _table(old_cos, b, n, k, d, rotary, old_b, old_n, old_s, old_d)
    sin_o = _table(old_sin, b, n, k, d, rotary, old_b, old_n, old_s, old_d)
    cos_n = _table(new_cos, b, n, k, d, rotary, new_b, new_n, new_s, new_d)
    sin_n = _table(new_sin, b, n, k, d, rotary, new_b, new_n, new_s, new_d)
    inside = (k < K) & (d < D)
    key = _table(keys, b, n, s, d, inside, keys_b, keys_n, keys_s, keys_d)
    pair = _table(keys, b, n, s, other, rotary, keys_b, keys_n, keys_s, keys_d)
    turn = key * (cos_n * cos_o + sin_n * sin_o) + pair * (sin_n * cos_o - cos_n * sin_o) * sign
    tl.store(rotated + (head * K + k) * D + d, tl.where(d < R, turn, key), mask=inside)


def rerotate_keys(
    keys: Float[Tensor, "B N S D"],
    old: Tables | None,
    new: Tables,
    *,
    interleaved: bool = False,
    rows: Int[Tensor, "B K"] | None = None,
) -> Float[Tensor, "B N K D"]:
    """Rotate by the difference of the two angles, in one launch."""
    batch, heads, length, dim = keys.shape
    count = length if rows is None else rows.shape[1]
    # The interpreter truncates where a GPU rounds: round in PyTorch.
    dtype = torch.float32 if launch.INTERPRETED else keys.dtype
    rotated = torch.empty(batch, heads, count, dim, dtype=dtype, device=keys.device)
    if rotated.numel() == 0:
        return rotated.to(keys.dtype)
    size = new[0].shape[-1]
    if old is None:
        old = torch.ones_like(new[0][:1, :1, :1]), torch.zeros_like(new[1][:1, :1, :1])
    (old_cos, old_sin), (new_cos, new_sin) = (
        _alike(*(table.expand(batch, heads, count, size) for table in tables))
        for tables in (old, new)
    )
    block = triton.next_power_of_2(dim)
    at_once = max(1, BLOCK_NUMBERS // block)
    with torch.cuda.device_of(keys):
        _rerotate_keys_kernel[(batch * heads, triton.cdiv(count, at_once))](
            keys, rows, old_cos, old_sin, new_cos, new_sin, rotated, heads, count,
            *(rows.stride() if rows is not None else (0, 0)),
            *keys.stride(), *old_cos.stride(), *new_cos.stride(),
            D=dim, R=size, INTERLEAVED=interleaved, BLOCK_K=at_once, BLOCK_D=block,
        )  # fmt: skip
    return rotated.to(keys.dtype)


def _alike(
    cosines: Float[Tensor, "B N S R"], sines: Float[Tensor, "B N S R"]
) -> tuple[Float[Tensor, "B N S R"], Float[Tensor, "B N S R"]]:
    """Return both tables with the same strides, as the kernel expects."""
    same = cosines.stride() == sines.stride()
    return (cosines, sines) if same else (cosines.contiguous(), sines.contiguous())

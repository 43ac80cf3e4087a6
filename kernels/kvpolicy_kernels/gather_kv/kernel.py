"""The Triton kernels: one copies rows to a new cache, one moves them to the front of theirs."""

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

BLOCK_K = 32
MOVED_ROWS = 128
MOVED_BYTES = 64
"""Bytes of a row that one program moves. Few, for many programs; a GPU reads no fewer at once."""


def unsupported(*tensors: Tensor) -> str | None:
    """Return why the kernels cannot take these keys, values and rows; None if they can."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "the kernel has no gradient"
    return launch.refusal(*tensors, largest_dim=1024)


@triton.jit
def _copy_rows(
    source, target, row, written, readable, row_stride, dim_stride,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    inside = (d < D)[None, :]
    taken = tl.load(
        source + row[:, None] * row_stride + d[None, :] * dim_stride,
        mask=readable[:, None] & inside,
        other=0,
    )
    tl.store(target + d[None, :], taken, mask=written[:, None] & inside)


@triton.jit
def _gather_kv_kernel(
    keys, values, rows, kept_keys, kept_values,
    N, S, K,
    keys_b, keys_n, keys_s, keys_d,
    values_b, values_n, values_s, values_d,
    rows_b, rows_n, rows_k,
    D: tl.constexpr, DV: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    b, n = head // N, head % N
    k = tl.program_id(1).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    written = k < K
    row = tl.load(rows + b * rows_b + n * rows_n + k * rows_k, mask=written, other=0).to(tl.int64)
    # A row that does not exist becomes zeros. To refuse it, the host would wait for the GPU.
    readable = written & (row >= 0) & (row < S)
    kept = (head * K + k)[:, None]
    _copy_rows(
        keys + b * keys_b + n * keys_n, kept_keys + kept * D,
        row, written, readable, keys_s, keys_d, D, BLOCK_D,
    )  # fmt: skip
    _copy_rows(
        values + b * values_b + n * values_n, kept_values + kept * DV,
        row, written, readable, values_s, values_d, DV, BLOCK_DV,
    )  # fmt: skip


def gather_kv(
    keys: Float[Tensor, "B N S D"], values: Float[Tensor, "B N S Dv"], rows: Int[Tensor, "B N K"]
) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]]:
    """Gather the rows of keys and values in one launch."""
    batch, heads, positions, dim = keys.shape
    kept, value_dim = rows.shape[-1], values.shape[-1]
    kept_keys = torch.empty(batch, heads, kept, dim, dtype=keys.dtype, device=keys.device)
    kept_values = torch.empty(batch, heads, kept, value_dim, dtype=values.dtype, device=keys.device)
    if rows.numel() == 0:
        return kept_keys, kept_values
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(keys):
        _gather_kv_kernel[(batch * heads, triton.cdiv(kept, BLOCK_K))](
            keys, values, rows, kept_keys, kept_values, heads, positions, kept,
            *keys.stride(), *values.stride(), *rows.stride(),
            D=dim, DV=value_dim, BLOCK_K=BLOCK_K,
            BLOCK_D=triton.next_power_of_2(dim), BLOCK_DV=triton.next_power_of_2(value_dim),
        )  # fmt: skip
    return kept_keys, kept_values


@triton.jit
def _walk(
    table, rows, part, S, K, table_s, table_d, rows_k,
    D: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    d = part * BLOCK_D + tl.arange(0, BLOCK_D)
    table += (d * table_d)[None, :]
    for start in range(0, K, BLOCK_K):
        k = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
        row = tl.load(rows + k * rows_k, mask=k < K, other=S).to(tl.int64)
        moves = ((row >= 0) & (row < S) & (row != k))[:, None] & (d < D)[None, :]
        moved = tl.load(table + (row * table_s)[:, None], mask=moves, other=0)
        # All threads read before any writes. Ascending rows lie behind all places of earlier
        # blocks, but a row of this block may be a place of this block.
        tl.debug_barrier()
        tl.store(table + (k * table_s)[:, None], moved, mask=moves)


@triton.jit
def _compact_kernel(
    keys, values, rows,
    N, S, K,
    keys_b, keys_n, keys_s, keys_d,
    values_b, values_n, values_s, values_d,
    rows_b, rows_n, rows_k,
    D: tl.constexpr, DV: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    b, n = head // N, head % N
    part = tl.program_id(1).to(tl.int64)
    rows += b * rows_b + n * rows_n
    key_parts: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    if part < key_parts:
        keys += b * keys_b + n * keys_n
        _walk(keys, rows, part, S, K, keys_s, keys_d, rows_k, D, BLOCK_K, BLOCK_D)
    else:
        part -= key_parts
        values += b * values_b + n * values_n
        _walk(values, rows, part, S, K, values_s, values_d, rows_k, DV, BLOCK_K, BLOCK_DV)


def channels_of(table: Tensor) -> int:
    """Return how many channels one program moves."""
    channels: int = triton.next_power_of_2(table.shape[-1])
    return min(channels, MOVED_BYTES // table.element_size())


def compact_in_place(
    keys: Float[Tensor, "B N S D"], values: Float[Tensor, "B N S Dv"], rows: Int[Tensor, "B N K"]
) -> None:
    """Move rows in one launch: heads and parts of channels in parallel, blocks of rows in order."""
    if rows.numel() == 0:
        return
    batch, heads, positions, dim = keys.shape
    kept, value_dim = rows.shape[-1], values.shape[-1]
    block_d, block_dv = channels_of(keys), channels_of(values)
    parts = triton.cdiv(dim, block_d) + triton.cdiv(value_dim, block_dv)
    with torch.cuda.device_of(keys):
        _compact_kernel[(batch * heads, parts)](
            keys, values, rows, heads, positions, kept,
            *keys.stride(), *values.stride(), *rows.stride(),
            D=dim, DV=value_dim, BLOCK_K=MOVED_ROWS, BLOCK_D=block_d, BLOCK_DV=block_dv,
        )  # fmt: skip

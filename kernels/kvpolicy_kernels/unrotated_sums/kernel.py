"""The Triton kernel: programs add up parts of the positions, and PyTorch the parts."""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.unrotated_sums.reference import Tables, UnrotatedSums

STAGES = 1
"""Of a pipeline each stage would hold its rows and tables in shared memory, twice."""


class ProductTile(NamedTuple):
    """How many positions and columns of the product a program has, and its precision."""

    positions: int
    columns: int
    precision: str
    warps: int


def unsupported(*tensors: Tensor) -> str | None:
    """Return why the kernel cannot take these vectors and tables; None if it can."""
    return launch.refusal(*tensors)


def product_tile(dim: int, exact: bool) -> ProductTile:
    """Choose a tile by shape alone. Half precision is multiplied as three tf32 products."""
    columns = min(max(16, triton.next_power_of_2(dim)), 32 if exact or dim > 128 else 64)
    if exact:
        return ProductTile(16, columns, "ieee", 4 if dim <= 128 else 8)
    return ProductTile(32 if dim <= 128 else 16, columns, "tf32x3", 8)


@triton.jit
def _unrotated(
    rows, inside, d, cosines, sines, s, centre,
    vectors_d, table_s,
    D: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    # The other channel of the pair, and its sign: a quarter turn takes (x, y) to (-y, x).
    if INTERLEAVED:
        other = d ^ 1
        sign = tl.where(d % 2 == 0, -1.0, 1.0)
    else:
        other = tl.where(d < R // 2, d + R // 2, d - R // 2)
        sign = tl.where(d < R // 2, -1.0, 1.0)
    rotary = inside[:, None] & (d < R)[None, :]
    every = inside[:, None] & (d < D)[None, :]
    place = s[:, None] * table_s + d[None, :]
    cos = tl.load(cosines + place, mask=rotary, other=1.0)
    sin = tl.load(sines + place, mask=rotary, other=0.0)
    own = tl.load(rows[:, None] + d[None, :] * vectors_d, mask=every, other=0).to(tl.float32)
    pair = tl.load(rows[:, None] + other[None, :] * vectors_d, mask=rotary, other=0)
    back = own * cos - pair.to(tl.float32) * sign[None, :] * sin
    if CENTRED:
        middle = tl.load(centre + d, mask=d < D, other=0.0)
        back = tl.where(every, back - middle[None, :], 0.0)
    return back


@triton.jit(do_not_specialize=["begun"])
def _sums_kernel(
    vectors, cosines, sines, centre, sums, products, begun,
    H, S, SPAN, COLUMN_BLOCKS,
    vectors_b, vectors_h, vectors_s, vectors_d, table_s, sums_split, products_split,
    D: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr, CENTRED: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1).to(tl.int64)
    head, column_block = place // COLUMN_BLOCKS, place % COLUMN_BLOCKS
    b, h = head // H, head % H
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    c = column_block * BLOCK_C + tl.arange(0, BLOCK_C).to(tl.int64)
    middle = centre + head * D
    total = tl.zeros([BLOCK_C], tl.float32)
    product = tl.zeros([BLOCK_D, BLOCK_C], tl.float32)
    for start in range(split * SPAN, tl.minimum(split * SPAN + SPAN, S), BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        rows = vectors + b * vectors_b + h * vectors_h + s * vectors_s
        some = _unrotated(
            rows, s < S, c, cosines, sines, s, middle, vectors_d, table_s,
            D, R, INTERLEAVED, CENTRED,
        )  # fmt: skip
        total += tl.sum(some, 0)
        if CENTRED:
            every = _unrotated(
                rows, s < S, d, cosines, sines, s, middle, vectors_d, table_s,
                D, R, INTERLEAVED, CENTRED,
            )  # fmt: skip
            product = tl.dot(tl.trans(every), some, product, input_precision=PRECISION)
    # What the blocks before have added is nothing where none has begun.
    of_sum, own = sums + split * sums_split + head * D + c, c < D
    added = c < D * begun
    tl.store(of_sum, total + tl.load(of_sum, mask=added, other=0.0), mask=own)
    if CENTRED:
        of_product = products + split * products_split + head * D * D + d[:, None] * D + c[None, :]
        every_d = (d < D)[:, None]
        product += tl.load(of_product, mask=every_d & added[None, :], other=0.0)
        tl.store(of_product, product, mask=every_d & own[None, :])


def unrotated_sums(
    vectors: Float[Tensor, "B H S D"],
    tables: Iterable[Tables],
    *,
    interleaved: bool = False,
    centre: Float[Tensor, "B H D"] | None = None,
) -> UnrotatedSums:
    """Sum parts of a block's positions in one launch, and at the end add up the parts."""
    batch, heads, positions, dim = vectors.shape
    tile = product_tile(dim, exact=launch.product_precision(vectors) == "ieee")
    column_blocks = triton.cdiv(dim, tile.columns)
    # The batch size must not count: a sequence's sums may not depend on the rest of the batch.
    splits = launch.splits(heads * column_blocks, triton.cdiv(positions, tile.positions))
    sums = torch.empty(splits, batch, heads, dim, dtype=torch.float32, device=vectors.device)
    middle = sums if centre is None else centre.float().contiguous()
    products = sums if centre is None else sums.new_empty(*sums.shape, dim)
    first = 0
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(vectors):
        for of_block in tables:
            cosines, sines = (table.float().contiguous() for table in of_block)
            count = len(cosines)
            span = tile.positions * triton.cdiv(triton.cdiv(count, tile.positions), splits)
            _sums_kernel[(splits, batch * heads * column_blocks)](
                vectors[:, :, first : first + count], cosines, sines, middle, sums, products,
                int(first > 0), heads, count, span, column_blocks,
                *vectors.stride(), cosines.stride(0), sums.stride(0), products.stride(0),
                D=dim, R=cosines.shape[-1], INTERLEAVED=interleaved, CENTRED=centre is not None,
                BLOCK_D=max(16, triton.next_power_of_2(dim)), BLOCK_C=tile.columns,
                BLOCK_S=tile.positions, PRECISION=tile.precision, num_warps=tile.warps,
                num_stages=STAGES,
            )  # fmt: skip
            first += count
            # The next block's need its memory.
            del of_block, cosines, sines
    if not first:
        sums, products = sums.zero_(), products.zero_()
    return UnrotatedSums(sums.sum(0), None if centre is None else products.sum(0))

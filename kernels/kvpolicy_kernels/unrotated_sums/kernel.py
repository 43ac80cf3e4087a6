"""The Triton kernel: programs add up parts of the positions, and PyTorch the parts."""

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

from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.unrotated_sums.reference import Further, Tables, UnrotatedSums

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
        return ProductTile(16, columns, "ieee", 4 if dim <= 64 else 8)
    return ProductTile(32 if dim <= 128 else 16, columns, "tf32x3", 8)


@triton.jit
def _unrotated(
    rows, inside, d, cosines, sines, further_cosines, further_sines, s, centre, T,
    vectors_d, table_s,
    D: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr, CENTRED: tl.constexpr,
    FURTHER: tl.constexpr,
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
    row = s % T if FURTHER else s
    place = row[:, None] * table_s + d[None, :]
    cos = tl.load(cosines + place, mask=rotary, other=1.0)
    sin = tl.load(sines + place, mask=rotary, other=0.0)
    if FURTHER:
        place = (s // T)[:, None] * table_s + d[None, :]
        more = tl.load(further_cosines + place, mask=rotary, other=1.0)
        less = tl.load(further_sines + place, mask=rotary, other=0.0)
        cos, sin = cos * more - sin * less, sin * more + cos * less
    own = tl.load(rows[:, None] + d[None, :] * vectors_d, mask=every, other=0).to(tl.float32)
    pair = tl.load(rows[:, None] + other[None, :] * vectors_d, mask=rotary, other=0)
    pair = pair.to(tl.float32)
    back = own * cos - pair * sign[None, :] * sin
    if CENTRED:
        middle = tl.load(centre + d, mask=d < D, other=0.0)
        back = tl.where(every, back - middle[None, :], 0.0)
    return back, tl.sqrt(own * own + pair * pair)


@triton.jit
def _sums_kernel(
    vectors, cosines, sines, further_cosines, further_sines, centre, sums, sizes, products,
    H, S, T, SPAN, COLUMN_BLOCKS,
    vectors_b, vectors_h, vectors_s, vectors_d, table_s, sums_split, products_split,
    D: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr, CENTRED: tl.constexpr,
    FURTHER: tl.constexpr, SIZES: tl.constexpr,
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
    length = tl.zeros([BLOCK_C], tl.float32)
    product = tl.zeros([BLOCK_D, BLOCK_C], tl.float32)
    for start in range(split * SPAN, tl.minimum(split * SPAN + SPAN, S), BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        rows = vectors + b * vectors_b + h * vectors_h + s * vectors_s
        some, size = _unrotated(
            rows, s < S, c, cosines, sines, further_cosines, further_sines, s, middle, T,
            vectors_d, table_s, D, R, INTERLEAVED, CENTRED, FURTHER,
        )  # fmt: skip
        total += tl.sum(some, 0)
        if SIZES:
            length += tl.sum(size, 0)
        if CENTRED:
            every, _ = _unrotated(
                rows, s < S, d, cosines, sines, further_cosines, further_sines, s, middle, T,
                vectors_d, table_s, D, R, INTERLEAVED, CENTRED, FURTHER,
            )  # fmt: skip
            product = tl.dot(tl.trans(every), some, product, input_precision=PRECISION)
    tl.store(sums + split * sums_split + head * D + c, total, mask=c < D)
    if SIZES:
        tl.store(sizes + split * sums_split + head * D + c, length, mask=c < D)
    if CENTRED:
        target = products + split * products_split + head * D * D + d[:, None] * D + c[None, :]
        tl.store(target, product, mask=(d < D)[:, None] & (c < D)[None, :])


def unrotated_sums(
    vectors: Float[Tensor, "B H S D"],
    tables: Tables,
    *,
    further: Further | None = None,
    interleaved: bool = False,
    centre: Float[Tensor, "B H D"] | None = None,
    sizes: bool = False,
) -> UnrotatedSums:
    """Sum parts of the positions in one launch, then add up the parts."""
    batch, heads, positions, dim = vectors.shape
    tile = product_tile(dim, exact=launch.product_precision(vectors) == "ieee")
    column_blocks = triton.cdiv(dim, tile.columns)
    blocks = triton.cdiv(positions, tile.positions)
    # The batch size must not count: a sequence's sums may not depend on the rest of the batch.
    span = tile.positions * triton.cdiv(blocks, launch.splits(heads * column_blocks, blocks))
    # Without positions the sum is zero; one split writes it.
    splits = max(1, triton.cdiv(positions, max(1, span)))
    cosines, sines = (table.float().contiguous() for table in tables)
    more, less = (cosines, sines) if further is None else (each.float() for each in further)
    sums = torch.empty(splits, batch, heads, dim, dtype=torch.float32, device=vectors.device)
    lengths = torch.empty_like(sums) if sizes else sums
    middle = sums if centre is None else centre.float().contiguous()
    products = sums if centre is None else sums.new_empty(*sums.shape, dim)
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(vectors):
        _sums_kernel[(splits, batch * heads * column_blocks)](
            vectors, cosines, sines, more.contiguous(), less.contiguous(), middle, sums, lengths,
            products, heads, positions, len(cosines), span, column_blocks,
            *vectors.stride(), cosines.stride(0), sums.stride(0), products.stride(0),
            D=dim, R=cosines.shape[-1], INTERLEAVED=interleaved, CENTRED=centre is not None,
            FURTHER=further is not None, SIZES=sizes,
            BLOCK_D=max(16, triton.next_power_of_2(dim)), BLOCK_C=tile.columns,
            BLOCK_S=tile.positions, PRECISION=tile.precision, num_warps=tile.warps,
            num_stages=STAGES,
        )  # fmt: skip
    return UnrotatedSums(
        sums.sum(0),
        None if centre is None else products.sum(0),
        lengths.sum(0) if sizes else None,
    )

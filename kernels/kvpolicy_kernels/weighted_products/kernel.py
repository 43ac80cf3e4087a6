"""The Triton kernel: programs sum parts of the positions in parallel, then PyTorch the parts."""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.common.triton.logits import load_rows
from kvpolicy_kernels.unrotated_sums.kernel import STAGES, product_tile


def unsupported(*tensors: Tensor) -> str | None:
    """Return why the kernel cannot take these values; None if it can."""
    return launch.refusal(*tensors)


@triton.jit
def _products_kernel(
    weights, values, products, H, G, S, SPAN, COLUMN_BLOCKS,
    weights_b, weights_h, weights_s,
    values_b, values_n, values_s, values_d, products_split,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1).to(tl.int64)
    head, column_block = place // COLUMN_BLOCKS, place % COLUMN_BLOCKS
    b, h = head // H, head % H
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    c = column_block * BLOCK_C + tl.arange(0, BLOCK_C).to(tl.int64)
    product = tl.zeros([BLOCK_D, BLOCK_C], tl.float32)
    for start in range(split * SPAN, tl.minimum(split * SPAN + SPAN, S), BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        rows = values + b * values_b + h // G * values_n + s * values_s
        of_head = weights + b * weights_b + h * weights_h + s * weights_s
        weight = tl.load(of_head, mask=s < S, other=0).to(tl.float32)
        every = load_rows(rows, s < S, d, values_d, D, True) * weight[:, None]
        some = load_rows(rows, s < S, c, values_d, D, True)
        product = tl.dot(tl.trans(every), some, product, input_precision=PRECISION)
    target = products + split * products_split + head * D * D + d[:, None] * D + c[None, :]
    tl.store(target, product, mask=(d < D)[:, None] & (c < D)[None, :])


def weighted_products(
    weights: Float[Tensor, "B H S"], values: Float[Tensor, "B N S D"]
) -> Float32[Tensor, "B H D D"]:
    """Sum parts of the positions in one launch, then add up the parts."""
    batch, heads, positions = weights.shape
    dim = values.shape[-1]
    tile = product_tile(dim, exact=launch.product_precision(values) == "ieee")
    column_blocks = triton.cdiv(dim, tile.columns)
    blocks = triton.cdiv(positions, tile.positions)
    # The batch size must not count: a sequence's sums may not depend on the rest of the batch.
    span = tile.positions * triton.cdiv(blocks, launch.splits(heads * column_blocks, blocks))
    # Without positions the sum is zero; one split writes it.
    splits = max(1, triton.cdiv(positions, max(1, span)))
    products = torch.empty(
        splits, batch, heads, dim, dim, dtype=torch.float32, device=values.device
    )
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(values):
        _products_kernel[(splits, batch * heads * column_blocks)](
            weights, values, products, heads, heads // values.shape[1], positions, span,
            column_blocks, *weights.stride(), *values.stride(), products.stride(0),
            D=dim, BLOCK_D=max(16, triton.next_power_of_2(dim)), BLOCK_C=tile.columns,
            BLOCK_S=tile.positions, PRECISION=tile.precision, num_warps=tile.warps,
            num_stages=STAGES,
        )  # fmt: skip
    return products.sum(0)

"""Sums of vectors before rotary embedding in PyTorch: the specification, and what a CPU runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import rows_per_block, spans
from kvpolicy_kernels.rerotate_keys.reference import rotate_half

Tables: TypeAlias = tuple[Float[Tensor, "s R"], Float[Tensor, "s R"]]
"""Cosines and sines of each position of a block."""


class UnrotatedSums(NamedTuple):
    """The sum over all positions, and of the products of channels; None without a centre."""

    sums: Float32[Tensor, "B H D"]
    products: Float32[Tensor, "B H D D"] | None


@torch.no_grad()
def unrotated_sums(
    vectors: Float[Tensor, "B H S D"],
    tables: Iterable[Tables],
    *,
    interleaved: bool = False,
    centre: Float[Tensor, "B H D"] | None = None,
) -> UnrotatedSums:
    """Undo the rotation of some positions at a time, in float32."""
    shape, first = (*vectors.shape[:2], vectors.shape[3]), 0
    sums = torch.zeros(shape, dtype=torch.float32, device=vectors.device)
    products = None if centre is None else sums.new_zeros(*shape, shape[-1])
    for of_block in tables:
        block = slice(first, first := first + len(of_block[0]))
        more = _of_block(vectors[:, :, block], of_block, interleaved, centre)
        sums += more.sums
        if products is not None and more.products is not None:
            products += more.products
        del of_block
    return UnrotatedSums(sums, products)


def _of_block(
    vectors: Float[Tensor, "B H s D"],
    tables: Tables,
    interleaved: bool,
    centre: Float[Tensor, "B H D"] | None,
) -> UnrotatedSums:
    batch, heads, positions, dim = vectors.shape
    sums = torch.zeros(batch, heads, dim, dtype=torch.float32, device=vectors.device)
    products = None if centre is None else sums.new_zeros(batch, heads, dim, dim)
    # Rotation holds four tensors of the size of its result.
    for block in spans(0, positions, rows_per_block(4 * batch * heads * dim, vectors.device)):
        cosines, sines = (table[block] for table in tables)
        some = _unrotated(vectors[:, :, block].float(), cosines, sines, interleaved)
        if centre is not None and products is not None:
            some = some - centre[:, :, None]
            products += some.mT @ some
        sums += some.sum(2)
    return UnrotatedSums(sums, products)


def _unrotated(
    vectors: Float32[Tensor, "B H s D"],
    cosines: Float[Tensor, "s R"],
    sines: Float[Tensor, "s R"],
    interleaved: bool,
) -> Float32[Tensor, "B H s D"]:
    size = cosines.shape[-1]
    turned = vectors[..., :size]
    back = turned * cosines - rotate_half(turned, interleaved=interleaved) * sines
    return torch.cat([back, vectors[..., size:]], dim=-1)

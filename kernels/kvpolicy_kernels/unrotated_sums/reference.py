"""Sums of vectors before rotary embedding in PyTorch: the specification, and what a CPU runs."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import rows_per_block, spans
from kvpolicy_kernels.rerotate_keys.reference import rotate_half

Tables: TypeAlias = tuple[Float[Tensor, "T R"], Float[Tensor, "T R"]]
"""Cosines and sines of T positions."""

Further: TypeAlias = tuple[Float[Tensor, "C R"], Float[Tensor, "C R"]]
"""Cosines and sines by which each T positions are rotated further."""


class UnrotatedSums(NamedTuple):
    """Sums over all positions: of the vectors, of products of channels, of the sizes of pairs.

    `products` are None without a centre, and `sizes` are None unless asked for.
    """

    sums: Float32[Tensor, "B H D"]
    products: Float32[Tensor, "B H D D"] | None
    sizes: Float32[Tensor, "B H D"] | None


@torch.no_grad()
def unrotated_sums(
    vectors: Float[Tensor, "B H S D"],
    tables: Tables,
    *,
    further: Further | None = None,
    interleaved: bool = False,
    centre: Float[Tensor, "B H D"] | None = None,
    sizes: bool = False,
) -> UnrotatedSums:
    """Undo the rotation of some positions at a time, in float32."""
    batch, heads, positions, dim = vectors.shape
    sums = torch.zeros(batch, heads, dim, dtype=torch.float32, device=vectors.device)
    products = None if centre is None else sums.new_zeros(batch, heads, dim, dim)
    lengths = torch.zeros_like(sums) if sizes else None
    # Rotation holds four tensors of the size of its result.
    for block in spans(0, positions, rows_per_block(4 * batch * heads * dim, vectors.device)):
        some = vectors[:, :, block].float()
        if lengths is not None:
            lengths += _sizes(some, tables[0].shape[-1], interleaved).sum(2)
        some = _unrotated(some, *_of_block(tables, further, block), interleaved)
        if centre is not None and products is not None:
            some = some - centre[:, :, None]
            products += some.mT @ some
        sums += some.sum(2)
    return UnrotatedSums(sums, products, lengths)


def _of_block(
    tables: Tables, further: Further | None, block: slice
) -> tuple[Float[Tensor, "s R"], Float[Tensor, "s R"]]:
    """Return the cosines and sines of the positions of a block."""
    if further is None:
        return tables[0][block], tables[1][block]
    places = torch.arange(block.start, block.stop, device=tables[0].device)
    within, turn = places % len(tables[0]), places // len(tables[0])
    (cosines, sines), (more, less) = (
        (table[0][rows], table[1][rows]) for table, rows in ((tables, within), (further, turn))
    )
    return cosines * more - sines * less, sines * more + cosines * less


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


def _sizes(
    vectors: Float32[Tensor, "B H s D"], size: int, interleaved: bool
) -> Float32[Tensor, "B H s D"]:
    """Return the size of each channel's pair, and of a channel alone its absolute value."""
    turned = vectors[..., :size]
    pairs = torch.hypot(turned, rotate_half(turned, interleaved=interleaved))
    return torch.cat([pairs, vectors[..., size:].abs()], dim=-1)

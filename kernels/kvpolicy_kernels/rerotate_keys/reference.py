"""Rotation between rotary positions in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

from typing import TypeAlias

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

Tables: TypeAlias = tuple[Float32[Tensor, "#B #N #K R"], Float32[Tensor, "#B #N #K R"]]
"""Cosines and sines of norm 1, for the first R channels.

Sequences, heads and positions may share them.
"""


def rotate_half(
    vectors: Float[Tensor, "*lead R"], *, interleaved: bool
) -> Float[Tensor, "*lead R"]:
    """Rotate each pair of channels by a quarter turn: (x, y) becomes (-y, x).

    >>> rotate_half(torch.tensor([1.0, 2.0, 3.0, 4.0]), interleaved=False)
    tensor([-3., -4.,  1.,  2.])
    >>> rotate_half(torch.tensor([1.0, 2.0, 3.0, 4.0]), interleaved=True)
    tensor([-2.,  1., -4.,  3.])
    """
    if interleaved:
        first, second = vectors[..., 0::2], vectors[..., 1::2]
        return torch.stack([-second, first], dim=-1).flatten(-2)
    first, second = vectors.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def angle_between(old: Tables, new: Tables) -> Tables:
    """Return the cosines and sines of the angles from `old` to `new`.

    >>> old, new = torch.tensor([0.5]), torch.tensor([2.0])
    >>> cos, sin = angle_between((old.cos(), old.sin()), (new.cos(), new.sin()))
    >>> torch.atan2(sin, cos)
    tensor([1.5000])
    """
    (old_cos, old_sin), (new_cos, new_sin) = old, new
    cosines = (new_cos * old_cos).addcmul_(new_sin, old_sin)
    return cosines, (new_sin * old_cos).addcmul_(new_cos, old_sin, value=-1)


def pair_of(interleaved: bool, size: int) -> tuple[slice, slice]:
    """Return the first and the second channel of each pair among `size`."""
    if interleaved:
        return slice(0, size, 2), slice(1, size, 2)
    return slice(0, size // 2), slice(size // 2, size)


def rerotate_keys(
    keys: Float[Tensor, "B N S D"],
    old: Tables | None,
    new: Tables,
    *,
    interleaved: bool = False,
    rows: Int[Tensor, "B K"] | None = None,
) -> Float[Tensor, "B N K D"]:
    """Rotate by the difference of the two angles."""
    if rows is not None:
        places = rows[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[-1])
        keys = keys.gather(2, places)
    cosines, sines = new if old is None else angle_between(old, new)
    size = cosines.shape[-1]
    # float32, or float64 if the keys are.
    before = keys[..., :size].to(torch.promote_types(keys.dtype, torch.float32))
    rotated = before * cosines
    x, y = pair_of(interleaved, size)
    rotated[..., x].addcmul_(before[..., y], sines[..., x], value=-1)
    rotated[..., y].addcmul_(before[..., x], sines[..., y])
    rotated = rotated.to(keys.dtype)
    return rotated if size == keys.shape[-1] else torch.cat([rotated, keys[..., size:]], dim=-1)

"""Rotate keys from one rotary position to another."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require
from kvpolicy_kernels.rerotate_keys.reference import Tables, angle_between, rotate_half

__all__ = ["angle_between", "rerotate_keys", "rotate_half"]


def rerotate_keys(
    keys: Float[Tensor, "B N S D"],
    old: Tables | None,
    new: Tables,
    *,
    interleaved: bool = False,
    rows: Int[Tensor, "B K"] | None = None,
) -> Float[Tensor, "B N K D"]:
    """Return keys that were rotated by `old` as if they had been rotated by `new`.

    `old` and `new` are the model's own cosines and sines at the two positions. Angles are never
    subtracted: cos(new - old) = cos new cos old + sin new sin old. If `old` is None, keys are
    rotated by `new`, which `angle_between` makes for many calls. Channels beyond R stay as they
    are. A pair of channels is 2j and 2j + 1 if `interleaved`, else j and j + R/2. The result is
    computed in float32 and rounded once. `rows` says which keys of each sequence are rotated, in
    this order; None: all, and K is S. Tables have K positions.

    Raises ValueError if the tables differ in width, or do not fit the keys.

    >>> import torch
    >>> keys = torch.tensor([[[[0.0, 1.0]]]])
    >>> none, quarter = (torch.tensor([[[[a, a]]]]) for a in (0.0, torch.pi / 2))
    >>> rotated = rerotate_keys(
    ...     keys, (none.cos(), none.sin()), (quarter.cos(), quarter.sin()))
    >>> rotated.round().abs()
    tensor([[[[1., 0.]]]])
    """
    size, tables = new[0].shape[-1], new if old is None else (*old, *new)
    for table in tables:
        require(
            table.shape[-1] == size and size % 2 == 0 and size <= keys.shape[-1],
            f"tables of {table.shape[-1]} and {size} channels do not fit keys {tuple(keys.shape)}: "
            "they must have the same even number of channels, at most that of the keys",
        )
    given = (keys, *tables) if rows is None else (keys, *tables, rows)
    return implementation(rerotate_keys, *given)(keys, old, new, interleaved=interleaved, rows=rows)

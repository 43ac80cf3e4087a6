"""Turn keys that carry one rotary position to another."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require
from kvpolicy_kernels.rerotate_keys.reference import Tables, rotate_half

__all__ = ["rerotate_keys", "rotate_half"]


def rerotate_keys(
    keys: Float[Tensor, "B N S D"], old: Tables, new: Tables, *, interleaved: bool = False
) -> Float[Tensor, "B N S D"]:
    """Keys that were rotated by `old`, as if rotated by `new`; rounded once, from float32.

    The angle between the two is never formed: cos(new - old) = cos new cos old + sin new sin old,
    from the model's own tables. Channels beyond R stay as they are. `interleaved` says that the
    pairs are channels 2j and 2j + 1, not j and j + R/2.

    >>> import torch
    >>> keys = torch.tensor([[[[0.0, 1.0]]]])
    >>> none, quarter = (torch.tensor([[[[a, a]]]]) for a in (0.0, torch.pi / 2))
    >>> turned = rerotate_keys(
    ...     keys, (none.cos(), none.sin()), (quarter.cos(), quarter.sin()))
    >>> turned.round().abs()
    tensor([[[[1., 0.]]]])
    """
    size = old[0].shape[-1]
    for table in (*old, *new):
        require(
            table.shape[-1] == size and size % 2 == 0 and size <= keys.shape[-1],
            f"tables of {table.shape[-1]} and {size} channels do not fit keys {tuple(keys.shape)}",
        )
    return implementation(rerotate_keys, keys, *old, *new)(keys, old, new, interleaved=interleaved)

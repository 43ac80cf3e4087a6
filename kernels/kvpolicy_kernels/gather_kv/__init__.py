"""Copy the kept rows of keys and values into a dense cache."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require

__all__ = ["gather_kv"]


def gather_kv(
    keys: Float[Tensor, "B N S D"], values: Float[Tensor, "B N S Dv"], rows: Int[Tensor, "B N K"]
) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]]:
    """Rows of the position axis in the given order, each head its own; rows may repeat.

    A row outside 0 .. S - 1 raises IndexError; on a GPU, where asking would synchronise, it is
    zeros.

    >>> import torch
    >>> keys = torch.arange(3.0).view(1, 1, 3, 1)
    >>> gather_kv(keys, keys, torch.tensor([[[2, 0]]]))[0].flatten()
    tensor([2., 0.])
    """
    require(
        keys.shape[:3] == values.shape[:3] and rows.shape[:2] == keys.shape[:2],
        f"keys {tuple(keys.shape)}, values {tuple(values.shape)} and rows {tuple(rows.shape)} "
        "differ in batch, heads or positions",
    )
    kept: tuple[Tensor, Tensor] = implementation(__name__, keys, values, rows).gather_kv(
        keys, values, rows
    )
    return kept

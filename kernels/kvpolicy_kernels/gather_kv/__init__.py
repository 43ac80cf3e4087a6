"""Copy the kept rows of keys and values into a dense cache, a new one or the one they are in."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require

__all__ = ["compact_in_place", "gather_kv"]


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
    _require_fit(keys, values, rows)
    return implementation(gather_kv, keys, values, rows)(keys, values, rows)


def compact_in_place(
    keys: Float[Tensor, "B N S D"], values: Float[Tensor, "B N S Dv"], rows: Int[Tensor, "B N K"]
) -> None:
    """Move the given rows of the position axis to its front, in the memory that they are in.

    The rows of a head ascend strictly; those of a head that keeps fewer than K end in fillers of
    S or more, whose places keep what they hold. What lies behind the first K places stays as it
    is. Keys and values may be views with any strides in which no two elements share memory.

    Rows that do not ascend, or start below 0, raise ValueError; on a GPU, where asking would
    synchronise, their head's first K places then hold no particular rows.

    >>> import torch
    >>> keys, values = torch.arange(4.0).view(1, 1, 4, 1), torch.arange(4, 8.0).view(1, 1, 4, 1)
    >>> compact_in_place(keys, values, torch.tensor([[[1, 3]]]))
    >>> keys.flatten(), values.flatten()
    (tensor([1., 3., 2., 3.]), tensor([5., 7., 6., 7.]))
    """
    _require_fit(keys, values, rows)
    require(
        rows.shape[2] <= keys.shape[2],
        f"{rows.shape[2]} rows do not fit into the {keys.shape[2]} positions that they come from",
    )
    require(
        not (_broadcasts(keys) or _broadcasts(values)) and keys.data_ptr() != values.data_ptr(),
        "keys and values must not share memory with each other or, expanded, with themselves",
    )
    implementation(compact_in_place, keys, values, rows)(keys, values, rows)


def _require_fit(keys: Tensor, values: Tensor, rows: Tensor) -> None:
    require(
        keys.shape[:3] == values.shape[:3] and rows.shape[:2] == keys.shape[:2],
        f"keys {tuple(keys.shape)}, values {tuple(values.shape)} and rows {tuple(rows.shape)} "
        "differ in batch, heads or positions",
    )


def _broadcasts(table: Tensor) -> bool:
    return any(
        size > 1 and stride == 0 for size, stride in zip(table.shape, table.stride(), strict=True)
    )

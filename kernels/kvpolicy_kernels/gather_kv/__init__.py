"""Copy the kept rows of keys and values into a new dense cache, or to the front of their own."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require

__all__ = ["compact_in_place", "gather_kv"]


def gather_kv(
    keys: Float[Tensor, "B N S D"], values: Float[Tensor, "B N S Dv"], rows: Int[Tensor, "B N K"]
) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]]:
    """Return the given rows of the position axis, for each head its own, in the given order.

    Rows may repeat. Raises ValueError if the shapes do not fit. Raises IndexError for a row outside
    0 .. S - 1; a kernel returns zeros for it instead, because a check would wait for the GPU.

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
    """Move the given rows to the front of the position axis, without a second cache.

    The rows of a head ascend strictly. A head that keeps fewer than K rows has fillers of S or more
    behind them; the places of fillers, and all places from K on, keep what they hold. Keys and
    values may be views with any strides, as long as no two elements share memory.

    Raises ValueError if the shapes do not fit, if the tensors share memory, or if the rows of a
    head do not ascend from 0 or above. A kernel does not check the rows, because that would wait
    for the GPU: the first K places of such a head then hold arbitrary rows.

    >>> import torch
    >>> keys, values = torch.arange(4.0).view(1, 1, 4, 1), torch.arange(4, 8.0).view(1, 1, 4, 1)
    >>> compact_in_place(keys, values, torch.tensor([[[1, 3]]]))
    >>> keys.flatten(), values.flatten()
    (tensor([1., 3., 2., 3.]), tensor([5., 7., 6., 7.]))
    """
    _require_fit(keys, values, rows)
    require(
        rows.shape[2] <= keys.shape[2],
        f"{rows.shape[2]} rows do not fit into the {keys.shape[2]} positions of the cache",
    )
    require(
        not (_broadcasts(keys) or _broadcasts(values)) and keys.data_ptr() != values.data_ptr(),
        "keys and values must not share memory: not with each other, nor, by expanding, with "
        "themselves",
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

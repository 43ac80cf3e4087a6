"""Sums of chosen rows, by the place that each is added to."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require

__all__ = ["summed_rows"]


def summed_rows(
    tables: Sequence[Float[Tensor, "B N S _"]],
    rows: Int[Tensor, "B N E"],
    slots: Int[Tensor, "B N E"],
    shares: Float[Tensor, "B N E"],
    *,
    count: int,
    ascending: bool = False,
) -> list[Float[Tensor, "B N K _"]]:
    """Return sum_e share_e table[row_e] over all e of each of `count` slots, for every table.

    Sums are float64, or float32 on a device that has no float64, so that their order does not
    change them: a GPU adds in varying order. A row of S or more is none, and needs a share of 0.
    `ascending` says that the slots of each head are.

    Raises ValueError if the shapes do not fit.

    >>> import torch
    >>> table, rows = torch.tensor([[[[1.0], [2.0], [5.0]]]]), torch.tensor([[[0, 2]]])
    >>> summed_rows([table], rows, torch.tensor([[[1, 1]]]), torch.ones(1, 1, 2), count=2)[0]
    tensor([[[[0.],
              [6.]]]], dtype=torch.float64)
    """
    require(
        rows.shape == slots.shape == shares.shape
        and all(table.shape[:2] == rows.shape[:2] for table in tables),
        f"rows {tuple(rows.shape)}, slots {tuple(slots.shape)} and shares {tuple(shares.shape)} do "
        f"not fit tables {[tuple(table.shape) for table in tables]}",
    )
    require(count >= 0, f"count must be at least 0, not {count}")
    return implementation(summed_rows, *tables, rows, slots, shares)(
        tables, rows, slots, shares, count=count, ascending=ascending
    )

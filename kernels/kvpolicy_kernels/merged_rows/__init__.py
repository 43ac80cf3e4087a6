"""Kept rows with others merged into them."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require

__all__ = ["merged_rows"]


def merged_rows(
    kept: Sequence[Float[Tensor, "B N K _"]],
    tables: Sequence[Float[Tensor, "B N S _"]],
    rows: Int[Tensor, "B N E"],
    slots: Int[Tensor, "B N E"],
    shares: Float[Tensor, "B N E"] | float,
    *,
    repeated: float,
    counted: Float[Tensor, "B N E"] | float,
) -> list[Float[Tensor, "B N K _"]]:
    """Return the kept rows of every table, with rows of the table merged into them.

    x_k <- (x_k (1 + repeated sum_e share_e) + sum_e share_e d_e) / (1 + sum_e count_e)

    The sums are over the rows d_e whose slot is k. `counted` are the counts, or a number: then
    count_e = counted share_e. `shares` may be a number, too. A row of S or more is none, and needs
    a share and a count of 0 where these are given for each row. A slot without rows does not
    change, bit for bit.

    Sums are float64, or float32 on a device that has no float64, so that their order does not
    change them. The result has the dtype of the kept rows.

    Raises ValueError if the shapes do not fit.

    >>> import torch
    >>> table, rows = torch.tensor([[[[1.0], [2.0], [5.0]]]]), torch.tensor([[[0, 2]]])
    >>> merged_rows([table[:, :, 1:2]], [table], rows, rows * 0, 1.0, repeated=0, counted=1.0)[0]
    tensor([[[[2.6667]]]])
    """
    given = [each for each in (shares, counted) if isinstance(each, Tensor)]
    require(
        all(each.shape == rows.shape for each in (slots, *given))
        and len(kept) == len(tables)
        and all(
            some.shape[:2] == table.shape[:2] == rows.shape[:2]
            and some.shape[-1] == table.shape[-1]
            for some, table in zip(kept, tables, strict=True)
        ),
        f"kept rows {[tuple(some.shape) for some in kept]}, tables "
        f"{[tuple(table.shape) for table in tables]}, rows {tuple(rows.shape)}, slots "
        f"{tuple(slots.shape)}, and shares or counts {[tuple(each.shape) for each in given]} do "
        "not fit",
    )
    return implementation(merged_rows, *kept, *tables, rows, slots, *given)(
        kept, tables, rows, slots, shares, repeated=repeated, counted=counted
    )

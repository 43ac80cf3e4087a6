"""Merging of rows in PyTorch: the specification, and what runs on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy_kernels.summed_rows.reference import summed_rows


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
    """Add up the shares of each slot, then the rows of one table after another."""
    if not tables:
        return []
    if not isinstance(shares, Tensor):
        shares = (rows < tables[0].shape[2]).float() * shares
    count = kept[0].shape[2]
    # A row of ones for each position, which takes no memory: the sum of its shares.
    ones = shares.new_ones(1).expand(*tables[0].shape[:3], 1)
    own = summed_rows((ones,), rows, slots, shares, count=count)[0]
    if isinstance(counted, Tensor):
        counts = 1 + summed_rows((ones,), rows, slots, counted, count=count)[0]
    else:
        counts = 1 + counted * own
    factors = 1 + repeated * own
    return [
        summed_rows((table,), rows, slots, shares, count=count)[0]
        .addcmul_(some, factors)
        .div_(counts)
        .to(some.dtype)
        for some, table in zip(kept, tables, strict=True)
    ]

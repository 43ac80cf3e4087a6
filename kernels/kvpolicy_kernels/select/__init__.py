"""The best positions of each head, the same on every device, and those that are left."""

from __future__ import annotations

from jaxtyping import Float, Int, Int64
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require

__all__ = ["select", "unselected"]


def select(
    scores: Float[Tensor, "B N S"], budgets: Int[Tensor, "B N"], *, count: int | None = None
) -> Int64[Tensor, "B N K"]:
    """Return the positions of the `budgets` highest scores of each head, ascending.

    Fillers of S follow where a head has fewer than K positions. K is `count`, or else the largest
    budget: to read it waits for the GPU, unless the budgets are on the CPU. A budget above K or S
    is cut to it. Of equal scores, those of lower positions win. +inf always wins; -inf and NaN win
    only if nothing else is left.

    Raises ValueError if the shapes do not fit, or for a negative `count`.

    >>> import torch
    >>> scores = torch.tensor([[[3.0, 1.0, 2.0, 2.0], [0.0, 9.0, 0.0, 0.0]]])
    >>> select(scores, torch.tensor([[2, 1]]))
    tensor([[[0, 2],
             [1, 4]]])
    """
    require(
        budgets.shape == scores.shape[:2],
        f"budgets {tuple(budgets.shape)} do not fit scores {tuple(scores.shape)}",
    )
    require(count is None or count >= 0, f"count must be at least 0, not {count}")
    # Budgets may be on the CPU: where they go from there is for each form to say.
    given = [scores] if budgets.device.type == "cpu" else [scores, budgets]
    return implementation(select, *given)(scores, budgets, count=count)


def unselected(rows: Int64[Tensor, "B N K"], length: int, count: int) -> Int64[Tensor, "B N E"]:
    """Return those of `length` positions that are not among the rows, ascending.

    The rows of a head ascend; fillers of `length` or more may follow them. `count` is E, and at
    least as many positions as any head has left. A head that has fewer gets fillers of `length`.

    Raises ValueError for a negative `length` or `count`.

    >>> import torch
    >>> unselected(torch.tensor([[[1, 2], [3, 5]]]), 5, 4)
    tensor([[[0, 3, 4, 5],
             [0, 1, 2, 4]]])
    """
    require(length >= 0, f"length must be at least 0, not {length}")
    require(count >= 0, f"count must be at least 0, not {count}")
    return implementation(unselected, rows)(rows, length, count)

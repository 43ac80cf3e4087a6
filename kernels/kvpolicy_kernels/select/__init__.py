"""Choose the best positions of every row, deterministically."""

from __future__ import annotations

from jaxtyping import Float, Int, Int64
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require

__all__ = ["select"]


def select(
    scores: Float[Tensor, "B N S"], budgets: Int[Tensor, "B N"], *, count: int | None = None
) -> Int64[Tensor, "B N K"]:
    """Positions of the `budgets` highest scores of each row, ascending, then the filler S.

    Of equal scores the lower positions win. A score of +inf always wins; -inf and NaN win only
    where nothing else is left. K is `count`, or the largest budget, which costs a GPU a
    synchronisation; a budget above K or S is cut to it.

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
    require(count is None or count >= 0, f"count must not be negative: {count}")
    return implementation(select, scores, budgets)(scores, budgets, count=count)

"""What the layers of one forward have left of their budgets, for the layers behind them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor


class Spare:
    """Counts for each row of the batch how many positions its layers could have kept and did not.

    Positions are summed over heads. A forward begins with none.

    >>> spare = Spare()
    >>> spare.leave(slice(1, 2), torch.tensor([[3, 1]]), 4)
    >>> spare.of(slice(0, 2))
    tensor([0, 4])
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._by_row = torch.zeros(0, dtype=torch.long, device="cpu")

    def begin(self) -> None:
        """Forget the forward before."""
        self._by_row = self._by_row[:0]

    def of(self, rows: slice) -> Int[Tensor, " b"]:
        """Return what is left for some rows."""
        missing = max(0, rows.stop - len(self._by_row))
        self._by_row = F.pad(self._by_row, (0, missing))
        return self._by_row[rows].clone()

    def leave(self, rows: slice, counts: Int[Tensor, "b N"], budget: int) -> None:
        """Count a layer whose heads keep `counts` positions, and could keep `budget` each."""
        left = self.of(rows) + budget * counts.shape[1] - counts.sum(1)
        self._by_row[rows] = left

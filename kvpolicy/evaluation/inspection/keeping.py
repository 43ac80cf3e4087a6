"""A selector that keeps given positions first, to try whether these were lacking."""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.stages.selection import Selection, Selector


@attrs.frozen(kw_only=True)
class KeepingSelector:
    """Selects as `selector` does, but of a prompt of `length` tokens keeps `places` first.

    Protected positions still come before them.
    """

    selector: Selector
    places: tuple[int, ...]
    length: int

    def select(self, scores: Float[Tensor, "B N S"], budgets: Int[Tensor, "B N"]) -> Selection:
        """Return the rows of each head."""
        if scores.shape[-1] == self.length:
            kept = torch.zeros_like(scores, dtype=torch.bool)
            kept[..., list(self.places)] = True
            most = torch.finfo(scores.dtype).max
            scores = scores.masked_fill(kept & (scores != torch.inf), most)
        return self.selector.select(scores, budgets)

"""An allocator that makes heads uneven, to measure attention over such heads."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch import Tensor

from kvpolicy import Observation


@attrs.frozen(kw_only=True)
class UnevenAllocator:
    """Gives the heads of a layer half of the budget and three halves of it, in turns.

    With random weights an allocator that goes by the scores would treat all heads nearly alike.
    """

    uneven: ClassVar[bool] = True

    def allocate(self, scores: Tensor, observation: Observation, budget: int) -> Tensor:
        """Return the counts [B, N]; for an even number of heads their mean is the budget."""
        counts = torch.full(scores.shape[:2], budget, device=scores.device)
        counts[:, 0::2] -= budget // 2
        counts[:, 1::2] += budget // 2
        return counts

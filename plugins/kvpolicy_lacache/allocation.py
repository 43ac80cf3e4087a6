"""As many positions as the ladder keeps: it may drop a few more than it has to."""

from __future__ import annotations

import attrs
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.stages.observation import Observation


@attrs.frozen(kw_only=True)
class LadderAllocator:
    """Gives each head as many positions as score 0 or more, and at most the budget.

    Shi et al., ICML 2025, https://arxiv.org/abs/2507.14204.

    >>> import torch
    >>> from kvpolicy.testing import observation
    >>> scores = torch.tensor([[[0.0, -0.7, 0.5, torch.inf]]])
    >>> [LadderAllocator().allocate(scores, observation(), budget).item() for budget in (2, 4)]
    [2, 3]
    """

    def allocate(
        self, scores: Float[Tensor, "B N S"], observation: Observation, budget: int
    ) -> Int[Tensor, "B N"]:
        """Return the counts, on the device of the scores."""
        return (scores >= 0).sum(-1).clamp(max=budget)

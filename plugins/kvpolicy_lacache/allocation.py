"""As many positions as the ladder keeps: it may drop a few more than it has to."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.errors import InvalidValueError
from kvpolicy.observation.observation import Observation
from kvpolicy_lacache.scoring import LadderScorer


@attrs.frozen(kw_only=True)
class LadderAllocator:
    """Gives heads as many positions as score 0 or more, and at most the budget.

    Which is what the ladder keeps, if the scores are those of its scorer. Heads get equally many:
    those of one layer must hold the same positions. Where a smoother has mixed the scores, the
    head that keeps the most is decisive.

    Shi et al., ICML 2025, https://arxiv.org/abs/2507.14204.

    >>> import torch
    >>> from kvpolicy.testing import observation
    >>> scores = torch.tensor([[[0.0, -0.7, 0.5, torch.inf]]])
    >>> [LadderAllocator().allocate(scores, observation(), budget).item() for budget in (2, 4)]
    [2, 3]
    """

    def check_parts(self, parts: Mapping[str, object]) -> None:
        """Raise InvalidValueError for scores of which 0 is no threshold."""
        scorer = parts["scorer"]
        if not isinstance(scorer, LadderScorer):
            raise InvalidValueError(
                f"allocator 'lacache' keeps what scores 0 or more, which of the scores of "
                f"{type(scorer).__name__} says nothing. Use scorer='lacache', or "
                "allocator='uniform'."
            )

    def allocate(
        self, scores: Float[Tensor, "B N S"], observation: Observation, budget: int
    ) -> Int[Tensor, "B N"]:
        """Return the counts, on the device of the scores."""
        counts: Tensor = (scores >= 0).sum(-1).clamp(max=budget)
        return counts.amax(1, keepdim=True).expand_as(counts)

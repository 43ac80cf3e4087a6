"""Allocate as many positions as the ladder keeps, which may be a few less than the budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.errors import InvalidValueError
from kvpolicy.observation.observation import Observation
from kvpolicy_lacache.noting import counts_of
from kvpolicy_lacache.scoring import LadderScorer


@attrs.frozen(kw_only=True)
class LadderAllocator:
    """Gives heads as many positions as have a score of at least 0, and at most the budget.

    With the scores of scorer 'lacache', these are the positions that the ladder keeps. All heads of
    a layer get the same number, because they must hold the same positions. If a smoother has made
    the scores of heads different, the largest number counts.

    Shi et al., ICML 2025, https://arxiv.org/abs/2507.14204.

    >>> import torch
    >>> from kvpolicy.testing import observation
    >>> scores = torch.tensor([[[0.0, -0.7, 0.5, torch.inf]]])
    >>> [LadderAllocator().allocate(scores, observation(), budget).item() for budget in (2, 4)]
    [2, 3]
    """

    position_bias: ClassVar[bool] = True

    def check_parts(self, parts: Mapping[str, object]) -> None:
        """Raise InvalidValueError unless the scorer is 'lacache'."""
        scorer = parts["scorer"]
        if not isinstance(scorer, LadderScorer):
            raise InvalidValueError(
                "allocator 'lacache' keeps positions that score at least 0. That has a meaning for "
                f"scorer 'lacache' only, not for {type(scorer).__name__}. Use scorer='lacache', or "
                "allocator='uniform'."
            )

    def allocate(
        self, scores: Float[Tensor, "B N S"], observation: Observation, budget: int
    ) -> Int[Tensor, "B N"]:
        """Return the counts on the CPU. They are read from the device if they were not noted."""
        if (noted := counts_of(observation)) is not None:
            planned = torch.tensor(noted, dtype=torch.long, device="cpu").clamp(max=budget)
            return planned[:, None].expand(scores.shape[:2])
        counts = (scores >= 0).sum(-1).cpu().clamp(max=budget)
        return counts.amax(1, keepdim=True).expand_as(counts)

"""Rounding: of each prompt a whole number of blocks is evicted, so at least the budget is kept."""

from __future__ import annotations

import attrs

from kvpolicy.budget import Budget, positions_of, written
from kvpolicy.pipeline.pipeline import Pipeline


@attrs.frozen(kw_only=True)
class Rounding:
    """What worker and scheduler must agree on: how many blocks of a prompt go.

    `protected` counts the positions that are always kept, and `window` the queries that the scorer
    needs; a shorter prompt is left alone.

    >>> rounding = Rounding(budget=64, protected=0, window=8)
    >>> rounding.evicted_blocks(200, block=32), rounding.kept(200, block=32)
    (4, 72)
    """

    budget: Budget
    protected: int
    window: int

    @classmethod
    def of(cls, policy: Pipeline) -> Rounding:
        """Return how the budget of a policy is rounded."""
        return cls(
            budget=policy.budget, protected=policy.protected, window=policy.scorer.window or 0
        )

    def evicted_blocks(self, prompt: int, *, block: int) -> int:
        """Return how many blocks of `block` tokens are evicted from a prompt of `prompt` tokens."""
        if prompt < self.window:
            return 0
        budget = positions_of(self.budget, prompt, protected=self.protected)
        return max(0, prompt - budget) // block

    def kept(self, prompt: int, *, block: int) -> int:
        """Return how many of the prompt's tokens each key/value head keeps."""
        return prompt - self.evicted_blocks(prompt, block=block) * block

    def told(self, block: int) -> str:
        """Say what the budget becomes.

        >>> Rounding(budget=64, protected=0, window=8).told(32)
        '64 to 95 positions'
        >>> Rounding(budget=0.25, protected=0, window=8).told(32)
        '25 % of the prompt and at most 31 positions more'
        """
        if isinstance(self.budget, int):
            return f"{self.budget:,} to {self.budget + block - 1:,} positions"
        return f"{written(self.budget)} of the prompt and at most {block - 1} positions more"

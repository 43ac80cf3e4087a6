"""How many positions a policy keeps: budgets, what is protected, and a remainder's row."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kvpolicy.budget import Budget, Within, positions_of

if TYPE_CHECKING:
    from kvpolicy.stages.scoring import Scorer


class Counting:
    """Counts for a `Pipeline`, which has the settings that are counted with."""

    if TYPE_CHECKING:
        # Types alone see these: the pipeline has them as fields.
        @property
        def scorer(self) -> Scorer: ...  # noqa: D102
        @property
        def budget(self) -> Budget: ...  # noqa: D102
        @property
        def sinks(self) -> int: ...  # noqa: D102
        @property
        def recent(self) -> int | float: ...  # noqa: D102
        @property
        def remainder_rows(self) -> int: ...  # noqa: D102
        @property
        def target(self) -> Within | None: ...  # noqa: D102

    @property
    def protected(self) -> int:
        """How many positions are kept whatever their scores.

        With a budget that is a share of the prompt, this counts no `recent` that is a share.
        """
        return self.sinks + self.recent_of(self.budget if isinstance(self.budget, int) else 0)

    def recent_of(self, budget: int) -> int:
        """Return how many of the last tokens are always kept, for a budget in positions."""
        share = isinstance(self.recent, float)
        return math.floor(self.recent * budget + 1e-9) if share else int(self.recent)

    def positions(self, seen: int) -> int:
        """Return the budget in rows for a sequence of `seen` tokens."""
        least = self.protected
        if self.remainder_rows:
            least = max(1, least) + self.remainder_rows
        return positions_of(self.budget, seen, protected=least)

    def kept_of(self, seen: int) -> int:
        """Return how many positions a sequence of `seen` tokens keeps once it has evicted some."""
        return self.positions(seen) - self.remainder_rows

    def keeps_all(self, seen: int) -> bool:
        """Return whether `seen` tokens fit, or are fewer than the scorer's window."""
        least = self.positions(seen) if self.target is None else max(1, self.protected)
        return seen <= least or seen < (self.scorer.window or 0)

"""What a comparison found, as data: a row for each contender, and who could not take part."""

from __future__ import annotations

from typing import Any

import attrs

from kvpolicy.evaluation.measures.interval import Interval, wilson_interval


@attrs.frozen(kw_only=True)
class Refusal:
    """A recipe that does not work at a budget, and why."""

    name: str
    budget: int | None
    reason: str


@attrs.frozen(kw_only=True)
class Row:
    """What one contender did: which prompts it answered, and what its cache held.

    `budget` is None for the full cache. `positions` counts the prompt's tokens that a key/value
    head still holds, on average over layers and heads, `protected` those that the policy keeps
    whatever their score; `nbytes` is what the cache of one prompt has allocated after the answer;
    `milliseconds` is the time of one decoded token.
    """

    name: str
    budget: int | None
    right: tuple[bool, ...]
    positions: float
    nbytes: int
    protected: int = 0
    milliseconds: float | None = None

    @property
    def correct(self) -> int:
        """How many prompts were answered right, from the first word to the last."""
        return sum(self.right)

    @property
    def accuracy(self) -> float:
        """The share of prompts that were answered right."""
        return self.correct / len(self.right)

    @property
    def interval(self) -> Interval:
        """The 95 % interval of that share."""
        return wilson_interval(self.correct, len(self.right))


@attrs.frozen(kw_only=True)
class Comparison:
    """The full cache, every recipe at every budget that it accepts, and the refusals."""

    tokens: int
    full: Row
    rows: tuple[Row, ...]
    refusals: tuple[Refusal, ...]

    @property
    def prompts(self) -> int:
        """How many prompts everyone answered."""
        return len(self.full.right)

    @property
    def names(self) -> tuple[str, ...]:
        """The recipes in alphabetical order, those refused everywhere too."""
        refused = {refusal.name for refusal in self.refusals}
        return tuple(sorted({row.name for row in self.rows} | refused))

    @property
    def budgets(self) -> tuple[int, ...]:
        """The budgets at which at least one recipe works, the smallest first."""
        return tuple(sorted({row.budget for row in self.rows if row.budget is not None}))

    def at(self, budget: int) -> tuple[Row, ...]:
        """Return the rows of one budget, the best first."""
        rows = [row for row in self.rows if row.budget == budget]
        return tuple(sorted(rows, key=lambda row: (-row.correct, row.name)))

    def of(self, name: str) -> dict[int, Row]:
        """Return the rows of one recipe by budget, the smallest first."""
        return {
            budget: row for budget in self.budgets for row in self.at(budget) if row.name == name
        }

    def share(self, row: Row) -> float:
        """Return a row's bytes as a share of the full cache's."""
        return row.nbytes / self.full.nbytes

    @property
    def telling_budget(self) -> int:
        """The smallest budget at which the best and the worst recipe are furthest apart."""
        return max(self.budgets, key=self._spread)

    def _spread(self, budget: int) -> int:
        rows = self.at(budget)
        return rows[0].correct - rows[-1].correct

    def to_dict(self) -> dict[str, Any]:
        """Describe everything as plain JSON data; the full cache is the first row."""
        return {
            "tokens": self.tokens,
            "prompts": self.prompts,
            "rows": [self._described(row) for row in (self.full, *self.rows)],
            "refusals": [attrs.asdict(refusal) for refusal in self.refusals],
        }

    def _described(self, row: Row) -> dict[str, Any]:
        computed = {
            "correct": row.correct,
            "accuracy": row.accuracy,
            "interval": list(row.interval),
            "share": self.share(row),
        }
        return attrs.asdict(row) | computed

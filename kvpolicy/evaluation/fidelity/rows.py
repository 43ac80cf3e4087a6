"""What a measurement of fidelity found: errors and answers of everyone, and their places."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import Any, NamedTuple

import attrs

from kvpolicy.evaluation.reports.comparison import Refusal


class Estimate(NamedTuple):
    """A mean over prompts, and its standard error."""

    value: float
    error: float

    @classmethod
    def mean(cls, figures: Sequence[float]) -> Estimate:
        """Average over two prompts or more.

        >>> Estimate.mean([1.0, 3.0])
        Estimate(value=2.0, error=1.0)
        """
        return cls(fmean(figures), stdev(figures) / sqrt(len(figures)))


@attrs.frozen(kw_only=True)
class FidelityRow:
    """One entrant: for each prompt its mean error, and whether it was answered right (1) or not.

    Both are means where the entrant has several policies. `every` is that of the policy: how often
    it evicts again while it decodes, None for never.
    """

    name: str
    budget: int
    errors: tuple[float, ...]
    right: tuple[float, ...]
    every: int | None = None

    @property
    def error(self) -> Estimate:
        """The mean error."""
        return Estimate.mean(self.errors)

    @property
    def accuracy(self) -> float:
        """The share of prompts that were answered right, from the first word to the last."""
        return sum(self.right) / len(self.right)

    def minus(self, other: FidelityRow) -> Estimate:
        """Return how much more this row errs than another, prompt by prompt.

        >>> mine, theirs = (
        ...     FidelityRow(name="any", budget=4, errors=errors, right=(1.0, 1.0))
        ...     for errors in ((0.5, 0.375), (0.25, 0.125)))
        >>> mine.minus(theirs)
        Estimate(value=0.25, error=0.0)
        """
        pairs = zip(self.errors, other.errors, strict=True)
        return Estimate.mean([mine - theirs for mine, theirs in pairs])

    def gap_closed(self, *, worst: FidelityRow, best: FidelityRow) -> Estimate:
        """Return (worst - mine) / (worst - best) of the mean errors: 0 at the worst, 1 at the best.

        The standard error is the jackknife's, over prompts, since all three rows share them.

        >>> worst, mine, best = (
        ...     FidelityRow(name=name, budget=4, errors=(error, error), right=(1.0, 1.0))
        ...     for name, error in (("worst", 1.0), ("mine", 0.4), ("best", 0.2)))
        >>> round(mine.gap_closed(worst=worst, best=best).value, 2)
        0.75
        """
        rows = [each.errors for each in (worst, self, best)]
        count = len(self.errors)
        without = [
            _share(*(sum(errors) - errors[prompt] for errors in rows)) for prompt in range(count)
        ]
        middle = fmean(without)
        squares = sum((share - middle) ** 2 for share in without)
        return Estimate(_share(*map(sum, rows)), sqrt((count - 1) / count * squares))


@attrs.frozen(kw_only=True)
class Fidelity:
    """Every entrant at every budget, how the full cache answered, and the refusals.

    `worst` and `best` name the entrants between which the others are placed.
    """

    tokens: int
    words: int
    worst: str
    best: str
    full: tuple[bool, ...]
    rows: tuple[FidelityRow, ...]
    refusals: tuple[Refusal, ...]

    @property
    def budgets(self) -> tuple[int, ...]:
        """The budgets, the smallest first."""
        return tuple(sorted({row.budget for row in self.rows}))

    def at(self, budget: int) -> tuple[FidelityRow, ...]:
        """Return the rows of one budget, the truest first."""
        rows = [row for row in self.rows if row.budget == budget]
        return tuple(sorted(rows, key=lambda row: (row.error.value, row.name)))

    def row(self, name: str, budget: int) -> FidelityRow | None:
        """Return one entrant's row, or None if it did not take part."""
        return next((row for row in self.at(budget) if row.name == name), None)

    def gap_closed(self, row: FidelityRow) -> Estimate | None:
        """Return a row's place between worst (0) and best (1); None if there is nothing between."""
        worst, best = (self.row(name, row.budget) for name in (self.worst, self.best))
        if worst is None or best is None or worst.errors == best.errors:
            return None
        return row.gap_closed(worst=worst, best=best)

    def to_dict(self) -> dict[str, Any]:
        """Describe everything as plain JSON data."""
        return {
            "tokens": self.tokens,
            "words": self.words,
            "prompts": len(self.full),
            "full_accuracy": sum(self.full) / len(self.full),
            "rows": [self._described(row) for row in self.rows],
            "refusals": [attrs.asdict(refusal) for refusal in self.refusals],
        }

    def _described(self, row: FidelityRow) -> dict[str, Any]:
        gap = self.gap_closed(row)
        return attrs.asdict(row) | {
            "error": row.error._asdict(),
            "accuracy": row.accuracy,
            "gap_closed": None if gap is None else gap._asdict(),
        }


def _share(worst: float, mine: float, best: float) -> float:
    return (worst - mine) / (worst - best)

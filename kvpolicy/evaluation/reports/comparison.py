"""The rows of one task as a comparison: the full cache beside recipes at several budgets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import attrs

from kvpolicy.budget import Within
from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.measures.interval import Interval, wilson_interval
from kvpolicy.evaluation.reports.summary import Cell, summary
from kvpolicy.evaluation.runs.entrant import FULL, Entrant
from kvpolicy.evaluation.runs.row import Row

FULL_NAME = "full cache"


@attrs.frozen(kw_only=True)
class Standing:
    """What one entrant did on samples that are right or wrong, and what its cache held.

    `budget` is in positions, and None for the full cache. `positions` counts the prompt's tokens
    that a key/value head holds when the answer begins, on average over layers and heads;
    `protected` those that the policy keeps whatever their score. `nbytes` is what the cache has
    allocated after the answer, `milliseconds` the time of one decoded token.
    """

    name: str
    budget: int | None
    correct: int
    samples: int
    positions: float
    nbytes: float
    protected: int = 0
    milliseconds: float | None = None

    @property
    def accuracy(self) -> float:
        """The share of samples that were answered right."""
        return self.correct / self.samples

    @property
    def interval(self) -> Interval:
        """The 95 % interval of that share."""
        return wilson_interval(self.correct, self.samples)


@attrs.frozen(kw_only=True)
class Refusal:
    """A recipe that does not work at a budget, and why."""

    name: str
    budget: int | None
    reason: str


@attrs.frozen(kw_only=True)
class Comparison:
    """The full cache, every recipe at every budget that it accepts, and the refusals.

    `tokens` is the length of a prompt, rounded if prompts differ.
    """

    tokens: int
    full: Standing
    standings: tuple[Standing, ...]
    refusals: tuple[Refusal, ...]

    @property
    def prompts(self) -> int:
        """How many prompts everyone answered."""
        return self.full.samples

    @property
    def names(self) -> tuple[str, ...]:
        """The recipes in alphabetical order, those refused everywhere too."""
        refused = {refusal.name for refusal in self.refusals}
        return tuple(sorted({each.name for each in self.standings} | refused))

    @property
    def budgets(self) -> tuple[int, ...]:
        """The budgets at which at least one recipe works, the smallest first."""
        return tuple(sorted({each.budget for each in self.standings if each.budget is not None}))

    def at(self, budget: int) -> tuple[Standing, ...]:
        """Return who stands where at one budget, the best first."""
        found = [each for each in self.standings if each.budget == budget]
        return tuple(sorted(found, key=lambda each: (-each.correct, each.name)))

    def of(self, name: str) -> dict[int, Standing]:
        """Return what one recipe did by budget, the smallest first."""
        return {
            budget: each for budget in self.budgets for each in self.at(budget) if each.name == name
        }

    def share(self, standing: Standing) -> float:
        """Return an entrant's bytes as a share of the full cache's."""
        return standing.nbytes / self.full.nbytes

    @property
    def telling_budget(self) -> int:
        """The smallest budget at which the best and the worst recipe are furthest apart."""
        return max(self.budgets, key=self._spread)

    def _spread(self, budget: int) -> int:
        found = self.at(budget)
        return found[0].correct - found[-1].correct

    def to_dict(self) -> dict[str, Any]:
        """Describe everything as plain JSON data; the full cache is the first row."""
        return {
            "tokens": self.tokens,
            "prompts": self.prompts,
            "rows": [self._described(each) for each in (self.full, *self.standings)],
            "refusals": [attrs.asdict(refusal) for refusal in self.refusals],
        }

    def _described(self, standing: Standing) -> dict[str, Any]:
        computed = {
            "accuracy": standing.accuracy,
            "interval": list(standing.interval),
            "share": self.share(standing),
        }
        return attrs.asdict(standing, recurse=False) | computed


def compared(rows: Iterable[Row], entrants: Iterable[Entrant]) -> Comparison:
    """Return the comparison that the rows of one task add up to; each score is 0 or 1.

    Budgets are positions. An entrant that failed on a sample is a refusal, with what it said first.
    Raises InvalidValueError if the full cache failed, or everyone else.
    """
    found = list(rows)
    cells = summary(found)
    _check(cells)
    protected = {
        (each.name, each.budget): 0 if each.policy is None else each.policy.protected
        for each in entrants
    }
    full, *others = [_standing(cell, protected) for cell in cells if not cell.errors]
    return Comparison(
        tokens=round(fmean(row.tokens for row in found if row.tokens is not None)),
        full=full,
        standings=tuple(others),
        refusals=tuple(
            Refusal(name=cell.entrant, budget=_positions(cell), reason=cell.error or "")
            for cell in cells
            if cell.errors
        ),
    )


def _check(cells: Sequence[Cell]) -> None:
    full, *others = cells
    if full.errors:
        raise InvalidValueError(f"the full cache failed, so nothing can be compared. {full.error}")
    if all(cell.errors for cell in others):
        reasons = " ".join(sorted({cell.error or "" for cell in others}))
        raise InvalidValueError(f"no recipe could be compared. {reasons}")


def _standing(cell: Cell, protected: Mapping[tuple[str, Any], int]) -> Standing:
    share = 0.0 if cell.estimate is None else cell.estimate.value
    seconds = cell.token_seconds
    return Standing(
        name=FULL_NAME if cell.entrant == FULL else cell.entrant,
        budget=_positions(cell),
        correct=round(share * cell.samples),
        samples=cell.samples,
        positions=cell.positions or 0.0,
        nbytes=cell.nbytes or 0.0,
        protected=protected[cell.entrant, cell.budget],
        milliseconds=None if seconds is None else 1000 * seconds,
    )


def _positions(cell: Cell) -> int | None:
    return None if cell.budget is None or isinstance(cell.budget, Within) else int(cell.budget)

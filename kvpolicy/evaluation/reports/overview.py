"""All tasks together: the mean score, and on how many tasks a recipe differs from the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import attrs

from kvpolicy.budget import Budget
from kvpolicy.evaluation.reports.summary import Cell


@attrs.frozen(kw_only=True)
class Overall:
    """One entrant at one budget, over all tasks whose scores are better where they are larger.

    `mean` is the plain mean of its scores; None if a task has no score of it. `better` and `worse`
    count the tasks where the interval of its difference to the baseline lies above or below 0,
    `compared` those where there is such an interval.
    """

    entrant: str
    budget: Budget | None
    mean: float | None
    better: int
    worse: int
    compared: int


def overview(cells: Sequence[Cell]) -> list[Overall]:
    """Return a line for each entrant and budget; none if there are not two tasks or more."""
    scored = [cell for cell in cells if cell.larger_is_better]
    tasks = {cell.task for cell in scored}
    if len(tasks) < 2:
        return []
    found: dict[tuple[str, Budget | None], list[Cell]] = {}
    for cell in scored:
        found.setdefault((cell.entrant, cell.budget), []).append(cell)
    return [_overall(group, len(tasks)) for group in found.values()]


def _overall(cells: Sequence[Cell], tasks: int) -> Overall:
    values = [cell.estimate.value for cell in cells if cell.estimate is not None]
    around = [
        cell.difference.interval
        for cell in cells
        if cell.difference is not None and cell.difference.interval is not None
    ]
    return Overall(
        entrant=cells[0].entrant,
        budget=cells[0].budget,
        mean=fmean(values) if len(values) == tasks else None,
        better=sum(low > 0 for low, _ in around),
        worse=sum(high < 0 for _, high in around),
        compared=len(around),
    )

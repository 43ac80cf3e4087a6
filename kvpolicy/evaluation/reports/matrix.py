"""The table of a task on a page: scores by recipe and budget, the best marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from kvpolicy.budget import Budget, written
from kvpolicy.evaluation.measures.bootstrap import Estimate
from kvpolicy.evaluation.reports import wording
from kvpolicy.evaluation.reports.markdown import columns
from kvpolicy.evaluation.reports.overview import Overall
from kvpolicy.evaluation.reports.summary import Cell


@attrs.frozen(kw_only=True)
class Figure:
    """A score as a page shows it; `strip` places it and its interval between 0 and 1.

    `verdict` says how the score compares with the baseline's: 'better', 'worse' or 'even'.
    """

    value: str
    interval: str
    best: bool
    difference: str | None
    verdict: str
    strip: Mapping[str, float] | None


def headings(budgets: Sequence[Budget | None]) -> list[str]:
    """Return the heading of each column."""
    return ["policy", *("score" if each is None else written(each) for each in budgets)]


def matrix(cells: Sequence[Cell]) -> dict[str, Any]:
    """Return headings, and for each entrant a figure at each budget; None where there is none.

    The full cache's score stands in every column, since it has no budget.
    """
    found = {(cell.entrant, cell.budget): cell for cell in cells}
    budgets = columns(cell.budget for cell in cells)
    by_name = {
        each: [found.get((each, None)) or found.get((each, budget)) for budget in budgets]
        for each in dict.fromkeys(cell.entrant for cell in cells)
    }
    best = [best_of([line[at] for line in by_name.values()]) for at in range(len(budgets))]
    return {
        "headings": headings(budgets),
        "strips": all(map(_fits, cells)),
        "matrix": [
            (name, [_figure(cell, best[at]) for at, cell in enumerate(line)])
            for name, line in by_name.items()
        ],
    }


def overall_matrix(lines: Sequence[Overall]) -> dict[str, Any] | None:
    """Return the same of all tasks together; None if there are no lines."""
    if not lines:
        return None
    found = {(line.entrant, line.budget): line for line in lines}
    budgets = columns(line.budget for line in lines)
    names = dict.fromkeys(line.entrant for line in lines)
    best = [
        max((each.mean or 0 for each in lines if each.budget == budget and budget), default=None)
        for budget in budgets
    ]
    return {
        "headings": headings(budgets),
        "matrix": [
            (
                name,
                [
                    _overall(found.get((name, None)) or found.get((name, budget)), best[at])
                    for at, budget in enumerate(budgets)
                ],
            )
            for name in names
        ],
    }


def best_of(cells: Sequence[Cell | None]) -> float | None:
    """Return the best score among those that evict; the full cache is no competitor."""
    rivals = [cell for cell in cells if cell is not None and cell.budget is not None]
    values = [cell.estimate.value for cell in rivals if cell.estimate is not None]
    if len(values) < 2:
        return None
    return max(values) if rivals[0].larger_is_better else min(values)


def verdict(difference: Estimate | None, *, larger_is_better: bool) -> str:
    """Say whether a difference is one: 'better', 'worse', or 'even' if its interval holds 0."""
    if difference is None or difference.interval is None:
        return "even"
    low, high = difference.interval
    if low <= 0 <= high:
        return "even"
    return "better" if (low > 0) == larger_is_better else "worse"


def _figure(cell: Cell | None, best: float | None) -> Figure | None:
    if cell is None or cell.estimate is None:
        return None
    value, around = cell.estimate
    strip = None
    if around is not None and _fits(cell):
        strip = {
            "left": round(100 * around.low, 1),
            "width": round(100 * (around.high - around.low), 1),
            "at": round(100 * value, 1),
        }
    return Figure(
        value=wording.figure(value),
        interval=wording.interval(cell.estimate),
        best=cell.budget is not None and value == best,
        difference=None if cell.difference is None else wording.signed(cell.difference),
        verdict=verdict(cell.difference, larger_is_better=cell.larger_is_better),
        strip=strip,
    )


def _overall(line: Overall | None, best: float | None) -> dict[str, Any] | None:
    if line is None or line.mean is None:
        return None
    return {
        "value": wording.figure(line.mean),
        "best": line.budget is not None and line.mean == best,
        "better": line.better,
        "worse": line.worse,
        "compared": line.compared,
    }


def _fits(cell: Cell) -> bool:
    """Whether a score and its interval lie between 0 and 1."""
    if not cell.larger_is_better or cell.estimate is None:
        return cell.larger_is_better
    value, around = cell.estimate
    return all(0 <= each <= 1 for each in (value, *(around or ())))

"""Score by length and depth on a page: a table for each recipe, those of one budget together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvpolicy.budget import Budget, order_of, written
from kvpolicy.evaluation.reports.grids import Grid
from kvpolicy.evaluation.reports.wording import NOTHING
from kvpolicy.evaluation.runs.entrant import Entrant

MOST = 16
"""How many columns a table has at most."""


def heats(grids: Sequence[Grid]) -> list[dict[str, Any]]:
    """Return the tables of each budget; those of the full cache come with the first."""
    budgets = list(dict.fromkeys(grid.budget for grid in grids if grid.budget is not None))
    order: list[Budget | None] = [*sorted(budgets, key=order_of)]
    return [_group(grids, budget, first=at == 0) for at, budget in enumerate(order or [None])]


def _group(grids: Sequence[Grid], budget: Budget | None, *, first: bool) -> dict[str, Any]:
    shown = [grid for grid in grids if grid.budget == budget or (first and grid.budget is None)]
    widest = max(len(grid.lengths) for grid in shown)
    return {
        "title": "" if budget is None else f", at {written(budget)}",
        "narrowed": (f" Of {widest} lengths, neighbours are averaged." if widest > MOST else ""),
        "heats": [_heat(grid.narrowed(MOST)) for grid in shown],
    }


def _heat(grid: Grid) -> dict[str, Any]:
    title = Entrant(name=grid.entrant, budget=grid.budget).title
    mean = NOTHING if grid.mean is None else f"{100 * grid.mean:.0f}"
    return {
        "title": f"{title}: mean {mean}",
        "label": f"Score by length and depth of {title}",
        "lengths": [_thousands(length) for length in grid.lengths],
        "lines": [
            (depth, [_place(score) for score in line])
            for depth, line in zip(grid.depths, grid.scores, strict=True)
        ],
    }


def _place(score: float | None) -> dict[str, Any]:
    if score is None:
        return {"share": 0, "text": NOTHING}
    share = min(1.0, max(0.0, score))
    return {"share": round(share, 2), "text": f"{100 * score:.0f}"}


def _thousands(length: int) -> str:
    """Write a length in little room.

    >>> _thousands(512), _thousands(32_000), _thousands(1_200)
    ('512', '32k', '1.2k')
    """
    return str(length) if length < 1000 else f"{length / 1000:.3g}k"

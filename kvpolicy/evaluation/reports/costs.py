"""What a score costs: bytes, footprint or time; and the scores that nothing beats at their cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import attrs

from kvpolicy.evaluation.reports import wording
from kvpolicy.evaluation.reports.summary import Cell
from kvpolicy.huggingface.report import readable_bytes


@attrs.frozen(kw_only=True)
class Point:
    """A recipe at a budget: what it costs, and how well it scores."""

    cell: Cell
    cost: float
    score: float


@attrs.frozen(kw_only=True)
class Cost:
    """One kind of cost: its name, the figure of a cell, how that is written, and its axis."""

    name: str
    title: str
    of: Callable[[Cell], float | None]
    write: Callable[[float], str]
    base: int = 10

    def points(self, cells: Iterable[Cell]) -> list[Point]:
        """Return the cells that have this figure and a finite score, the cheapest first."""
        found = []
        for cell in cells:
            cost = self.of(cell)
            if cost is None or cell.estimate is None or not math.isfinite(cell.estimate.value):
                continue
            found.append(Point(cell=cell, cost=cost, score=cell.estimate.value))
        return sorted(found, key=lambda point: (point.cost, point.cell.title))


COSTS = (
    Cost(
        name="bytes",
        title="bytes of the cache",
        of=lambda cell: cell.nbytes,
        write=lambda count: readable_bytes(count).replace(".0 ", " "),
        base=2,
    ),
    Cost(
        name="footprint",
        title="footprint, as a share of the full cache's",
        of=lambda cell: cell.footprint,
        write=lambda share: f"{100 * share:.3g} %",
    ),
    Cost(
        name="time",
        title="time of each token after the first",
        of=lambda cell: cell.token_seconds,
        write=wording.time,
    ),
)


def front(points: Sequence[Point], *, larger_is_better: bool) -> list[Point]:
    """Return the points that no other beats: at their cost or below, none scores better.

    `points` are sorted by cost. Of points that are alike in both, the first is returned.
    """
    sign = 1 if larger_is_better else -1
    order = sorted(points, key=lambda point: (point.cost, -sign * point.score))
    found: list[Point] = []
    for point in order:
        if not found or sign * point.score > sign * found[-1].score:
            found.append(point)
    return found

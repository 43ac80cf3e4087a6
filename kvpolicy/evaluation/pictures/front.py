"""The picture of a task's score over what it costs, and of what nothing beats at that cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from kvpolicy.evaluation.pictures.marks import Mark
from kvpolicy.evaluation.pictures.panel import Panel, plain_text
from kvpolicy.evaluation.pictures.theme import LIGHT, Theme
from kvpolicy.evaluation.reports.costs import Cost, front
from kvpolicy.evaluation.reports.summary import Cell

HEIGHT = 280
"""Pixels."""


@plain_text
def front_picture(
    cells: Sequence[Cell], cost: Cost, marks: Mapping[str, Mark], theme: Theme = LIGHT
) -> Figure | None:
    """Draw a point for each recipe and budget; None if there are fewer than two."""
    points = cost.points(cells)
    if len(points) < 2:
        return None
    best = front(points, larger_is_better=cells[0].larger_is_better)
    panel = Panel(theme=theme, height=HEIGHT)
    panel.scale("x", [each.cost for each in points], write=cost.write, base=cost.base)
    panel.scale(
        "y", [each.score for each in points], base=None if cells[0].larger_is_better else 10,
        write=lambda value: f"{value:,.4g}",
    )  # fmt: skip
    panel.label("x", cost.title)
    for each in points:
        if each not in best:
            panel.point(each.cost, each.score, marks[each.cell.entrant], size=5, alpha=0.55)
    panel.axes.step(
        [each.cost for each in best], [each.score for each in best], where="post",
        color=theme.muted, linewidth=1,
    )  # fmt: skip
    for each in best:
        panel.point(each.cost, each.score, marks[each.cell.entrant], size=7)
    return panel.figure

"""The picture of a task's score over budget, with the interval of each score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from kvpolicy.budget import Budget, Within, order_of, written
from kvpolicy.evaluation.pictures.marks import Mark
from kvpolicy.evaluation.pictures.names import NAMES, height_for, write_names
from kvpolicy.evaluation.pictures.panel import LEFT, WIDTH, Panel, plain_text
from kvpolicy.evaluation.pictures.theme import LIGHT, Theme
from kvpolicy.evaluation.reports.summary import Cell

NEAR = 34  # pixels between two ticks, at least
DODGE = 2.4  # pixels between two intervals at one budget
SPREAD = 0.03  # of the width: how far an interval stands from its budget at most
EDGE = 0.08  # of the width, left free on both sides


@plain_text
def quality_picture(
    cells: Sequence[Cell], marks: Mapping[str, Mark], theme: Theme = LIGHT
) -> Figure | None:
    """Draw a line for each recipe and the full cache's score; None if no recipe has a score."""
    drawn = [cell for cell in cells if cell.estimate and math.isfinite(cell.estimate.value)]
    recipes = list(dict.fromkeys(cell.entrant for cell in drawn if cell.budget is not None))
    if not recipes:
        return None
    names = list(dict.fromkeys(cell.entrant for cell in drawn))
    panel = Panel(theme=theme, height=height_for(len(names)), right=NAMES)
    places = places_of({cell.budget for cell in drawn if cell.budget is not None})
    _scale(panel, drawn, places)
    ends: list[tuple[float, str]] = []
    for index, name in enumerate(recipes):
        step = min(DODGE / (WIDTH - LEFT - NAMES), 2 * SPREAD / len(recipes))
        shift = step * (index - (len(recipes) - 1) / 2)
        points = [cell for cell in drawn if cell.entrant == name and cell.budget is not None]
        ends.append((_draw_line(panel, points, places, marks[name], shift), name))
    for cell in drawn:
        if cell.budget is None and cell.estimate:
            _draw_full(panel, cell)
            ends.append((cell.estimate.value, cell.entrant))
    write_names(panel, ends, marks, start=1 - EDGE + SPREAD)
    return panel.figure


def places_of(budgets: set[Budget]) -> dict[Budget, float]:
    """Return where budgets stand, between 0 and 1: by their logarithm, or evenly if mixed.

    Error targets stand evenly: the smallest error, which keeps the most, is last.

    >>> places_of({64, 128, 256})
    {64: 0.08, 128: 0.5, 256: 0.92}
    >>> places_of({64, 0.25})
    {64: 0.08, 0.25: 0.92}
    """
    order = sorted(budgets, key=order_of)
    if len(order) == 1:
        return {order[0]: 0.5}
    mixed = len({type(budget) for budget in order}) > 1
    steps = [
        float(place) if mixed or isinstance(budget, Within) else math.log(budget)
        for place, budget in enumerate(order)
    ]
    span = steps[-1] - steps[0]
    return {
        budget: round(EDGE + (1 - 2 * EDGE) * (step - steps[0]) / span, 4)
        for budget, step in zip(order, steps, strict=True)
    }


def _scale(panel: Panel, cells: Sequence[Cell], places: Mapping[Budget, float]) -> None:
    values = [
        value
        for cell in cells
        if cell.estimate
        for value in (cell.estimate.value, *(cell.estimate.interval or ()))
        if math.isfinite(value)
    ]
    panel.scale(
        "y",
        values,
        write=lambda value: f"{value:,.4g}",
        base=None if cells[0].larger_is_better else 10,
    )
    panel.axes.set_xlim(0, 1)
    ticks: list[Budget] = []
    for budget, place in places.items():
        wide = NEAR / (WIDTH - LEFT - NAMES)
        if not ticks or place - places[ticks[-1]] >= wide:
            ticks.append(budget)
    panel.axes.set_xticks([places[each] for each in ticks], [written(each) for each in ticks])
    panel.label("x", "budget")


def _draw_line(
    panel: Panel,
    cells: Sequence[Cell],
    places: Mapping[Budget, float],
    mark: Mark,
    shift: float,
) -> float:
    """Draw a recipe's scores and intervals, and return the last score."""
    found = sorted(
        (places[cell.budget] + shift, cell.estimate)
        for cell in cells
        if cell.budget is not None and cell.estimate is not None
    )
    xs, values = [x for x, _ in found], [estimate.value for _, estimate in found]
    colour = panel.colour(mark)
    around = [(x, estimate.interval) for x, estimate in found if estimate.interval]
    panel.axes.vlines(
        [x for x, _ in around],
        [low for _, (low, _) in around],
        [high for _, (_, high) in around],
        color=colour, linewidth=1.2, alpha=0.55, clip_on=False,
    )  # fmt: skip
    panel.axes.plot(
        xs, values, color=colour, linestyle=mark.line, linewidth=1.5, marker=mark.shape,
        markersize=6, markeredgewidth=0, clip_on=False,
    )  # fmt: skip
    return values[-1]


def _draw_full(panel: Panel, cell: Cell) -> None:
    if cell.estimate is None:
        return
    ink = panel.theme.ink
    if cell.estimate.interval is not None:
        panel.axes.axhspan(*cell.estimate.interval, color=ink, alpha=0.07, linewidth=0)
    panel.axes.axhline(cell.estimate.value, color=ink, linewidth=1.3, linestyle=(0, (2, 2)))

"""The picture of scores by length and depth: a map for each recipe at one budget."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from kvpolicy.evaluation.pictures.panel import SIZE, plain_text
from kvpolicy.evaluation.pictures.theme import HUES, LIGHT, Theme
from kvpolicy.evaluation.reports.grids import Grid
from kvpolicy.evaluation.runs.entrant import Entrant

WIDTH, HEIGHT, COLUMNS = 3.6, 2.3, 3  # inches, and maps side by side
HUE = HUES[2]


@plain_text
def heat_picture(grids: Sequence[Grid], theme: Theme = LIGHT) -> Figure:
    """Draw a map for each grid; scores from 0 to 1, the stronger the colour the higher."""
    across = min(COLUMNS, len(grids))
    down = math.ceil(len(grids) / across)
    figure = Figure(
        figsize=(WIDTH * across, HEIGHT * down), facecolor=theme.ground, layout="constrained"
    )
    axes = figure.subplots(down, across, squeeze=False)
    for place, each in enumerate(axes.flat):
        if place < len(grids):
            _draw(each, grids[place], theme)
        else:
            each.set_axis_off()
    return figure


def _draw(axes: Axes, grid: Grid, theme: Theme) -> None:
    shades = LinearSegmentedColormap.from_list("shades", [theme.trough, HUE])
    values = [[math.nan if score is None else score for score in line] for line in grid.scores]
    axes.imshow(values, cmap=shades, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    title = Entrant(name=grid.entrant, budget=grid.budget).title
    mean = "" if grid.mean is None else f": mean {100 * grid.mean:.0f} %"
    axes.set_title(title + mean, size=SIZE, color=theme.ink, loc="left")
    every = math.ceil(len(grid.lengths) / 6)
    shown = range(0, len(grid.lengths), every)
    axes.set_xticks(list(shown), [str(grid.lengths[place]) for place in shown])
    axes.set_yticks(range(len(grid.depths)), [f"{depth} %" for depth in grid.depths])
    axes.tick_params(length=0, labelsize=SIZE - 3, labelcolor=theme.muted)
    axes.spines[:].set_visible(False)

"""The picture of perplexity over position."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from kvpolicy.evaluation.pictures.marks import Mark
from kvpolicy.evaluation.pictures.names import NAMES, height_for, write_names
from kvpolicy.evaluation.pictures.panel import Panel, plain_text
from kvpolicy.evaluation.pictures.theme import LIGHT, Theme
from kvpolicy.evaluation.reports.curves import Curve

MARKED = 4
"""Of so many points of a line, one has a mark."""


@plain_text
def curve_picture(
    curves: Sequence[Curve], marks: Mapping[str, Mark], theme: Theme = LIGHT
) -> Figure | None:
    """Draw a line for each curve; None if there is none with two finite points."""
    drawn = [curve for curve in curves if sum(map(math.isfinite, curve.values)) > 1]
    if not drawn:
        return None
    panel = Panel(theme=theme, height=height_for(len(drawn)), right=NAMES)
    values = [value for curve in drawn for value in curve.values if math.isfinite(value)]
    panel.scale("y", values, write=lambda value: f"{value:,.4g}", base=10)
    longest = max(curve.ends[-1] for curve in drawn)
    in_tokens = all(curve.in_tokens for curve in drawn)
    panel.scale(
        "x", [0, longest],
        write=lambda value: f"{value:,.0f}" if in_tokens else f"{100 * value:.0f} %",
    )  # fmt: skip
    panel.axes.set_xlim(0, longest)
    panel.label("x", "position in tokens" if in_tokens else "position, as a share of the text")
    ends = []
    for place, curve in enumerate(drawn):
        mark = marks[curve.entrant]
        points = [each for each in zip(curve.ends, curve.values, strict=True)
                  if math.isfinite(each[1])]  # fmt: skip
        panel.axes.plot(
            *zip(*points, strict=True), color=panel.colour(mark), linestyle=mark.line,
            linewidth=1.5, marker=mark.shape, markersize=5, markeredgewidth=0, clip_on=False,
            markevery=(place % MARKED, MARKED),
        )  # fmt: skip
        ends.append((points[-1][1], curve.entrant))
    write_names(panel, ends, marks, start=1.0)
    return panel.figure

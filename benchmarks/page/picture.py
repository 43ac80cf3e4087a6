"""The picture of how the cost of evicting a layer grows with the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.growth import growth
from benchmarks.page.markdown import length
from kvpolicy.evaluation.pictures.theme import LIGHT, Theme, colours, title

Costs = Mapping[tuple[str, str], Mapping[int, float]]
PANELS = (("s", 1000, "milliseconds"), ("MiB", 1, "MiB on top of the layer"))


def save_growth(path: Path, costs: Costs, subtitle: str, theme: Theme = LIGHT) -> None:
    """Draw time and memory side by side: points, and the lines through them."""
    # A name is plain text. Without this, "$x_1$" would be drawn as a formula.
    with rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(9.6, 4.2), facecolor=theme.ground)
        title(
            figure, "What it costs to evict a layer, by the length of the prompt", subtitle, theme
        )
        panels = figure.subplots(1, 2, gridspec_kw={"wspace": 0.24})
        figure.subplots_adjust(left=0.07, right=0.98, bottom=0.15, top=0.78)
        palette = colours({name for name, _ in costs})
        for axes, (unit, scale, label) in zip(panels, PANELS, strict=True):
            for (name, of_unit), points in sorted(costs.items()):
                if of_unit == unit:
                    _draw(axes, points, scale, name, palette[name])
            _scale(axes, label, theme)
        figure.savefig(path, dpi=200, metadata={"Software": None})


def _draw(axes: Axes, points: Mapping[int, float], scale: float, name: str, colour: str) -> None:
    line = growth(points).line
    ends = [min(points), max(points)]
    axes.plot(ends, [scale * (line.slope * x + line.intercept) for x in ends], color=colour)
    axes.plot(
        list(points), [scale * cost for cost in points.values()], "o", color=colour,
        markersize=5.5, markeredgewidth=0, clip_on=False, label=name,
    )  # fmt: skip


def _scale(axes: Axes, label: str, theme: Theme) -> None:
    axes.set_facecolor("none")
    axes.set_title(label, loc="left", color=theme.muted, size=9.5)
    axes.set_xlabel("tokens of the prompt")
    axes.xaxis.label.set(color=theme.muted, size=9.5)
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda tokens, _: length(int(tokens)) if tokens else "0")
    )
    axes.set_xticks([0, *(2**power for power in (13, 14, 15, 16))])
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=theme.line, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9.5, labelcolor=theme.muted, pad=6)
    axes.spines[:].set_visible(False)
    axes.legend(frameon=False, labelcolor=theme.ink, fontsize=10)

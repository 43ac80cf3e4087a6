"""A small picture for a page: its size in pixels, its axes, and how points and lines look."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from kvpolicy.evaluation.pictures.marks import Mark
from kvpolicy.evaluation.pictures.theme import HUES, Theme

DPI = 72  # so that a point is a pixel
WIDTH = 380
LEFT, RIGHT, ABOVE, BELOW = 48, 30, 12, 46
SIZE = 11  # of letters
_WIDE = 8.0
"""From this ratio of the largest to the smallest value on, an axis is logarithmic."""


@attrs.frozen(kw_only=True)
class Panel:
    """A figure of one pair of axes. `right` pixels are left free beside it."""

    theme: Theme
    height: int = 260
    right: int = RIGHT
    figure: Figure = attrs.field(init=False)
    axes: Axes = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Make the figure."""
        figure = Figure(
            figsize=(WIDTH / DPI, self.height / DPI), dpi=DPI, facecolor=self.theme.ground
        )
        inner = (WIDTH - LEFT - self.right, self.height - ABOVE - BELOW)
        place = (LEFT / WIDTH, BELOW / self.height, inner[0] / WIDTH, inner[1] / self.height)
        axes = figure.add_axes(place)
        axes.set_facecolor("none")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelsize=SIZE, labelcolor=self.theme.muted, pad=4)
        axes.grid(axis="y", color=self.theme.line, linewidth=0.8)
        axes.set_axisbelow(True)
        object.__setattr__(self, "figure", figure)
        object.__setattr__(self, "axes", axes)

    @property
    def inner_height(self) -> int:
        """The height of the axes, in pixels."""
        return self.height - ABOVE - BELOW

    def colour(self, mark: Mark) -> str:
        """Return the colour of a mark on this ground."""
        return self.theme.ink if mark.hue is None else HUES[mark.hue]

    def label(self, axis: str, text: str) -> None:
        """Write what an axis shows."""
        found = getattr(self.axes, f"{axis}axis").label
        found.set(text=text, color=self.theme.muted, size=SIZE)

    def scale(
        self,
        axis: str,
        values: Sequence[float],
        *,
        write: Callable[[float], str],
        base: int | None = None,
    ) -> None:
        """Make an axis hold all values, and write its ticks by `write`.

        With a base the axis is logarithmic if the values are far apart: 2 has ticks at powers of
        2, 10 at 1, 3, 10 and so on.
        """
        low, high = min(values), max(values)
        ticks = getattr(self.axes, f"{axis}axis")
        if base and low > 0 and high / low >= _WIDE:
            getattr(self.axes, f"set_{axis}scale")("log")
            edge = (high / low) ** 0.06
            limits = low / edge, high * edge
            subs = (1, 3) if base == 10 and high / low < 2000 else (1,)
            ticks.set_major_locator(LogLocator(base, subs, numticks=5))
            ticks.set_minor_locator(NullLocator())
        else:
            edge = 0.06 * (high - low) or 0.06 * abs(high) or 1
            limits = low - edge, high + edge
            ticks.set_major_locator(MaxNLocator(5 if axis == "y" else 4))
        getattr(self.axes, f"set_{axis}lim")(*limits)
        ticks.set_major_formatter(FuncFormatter(lambda value, _: write(value)))

    def point(self, x: float, y: float, mark: Mark, size: float = 6, **style: Any) -> None:
        """Draw the shape of a mark."""
        flat = mark.shape == "_"
        self.axes.plot(
            [x], [y], linestyle="none", marker=mark.shape, markersize=size + 3 * flat,
            color=self.colour(mark), markeredgewidth=2 if flat else 0, clip_on=False, **style,
        )  # fmt: skip

    def height_of(self, y: float) -> float:
        """Return where a value stands, as a share of the axes' height."""
        axes = self.axes
        place = axes.transAxes.inverted().transform(axes.transData.transform((0.5, y)))
        return float(place[1])


plain_text = rc_context({"text.parse_math": False, "font.sans-serif": ["DejaVu Sans"]})
"""Names are drawn as they are written, also those with TeX in them."""

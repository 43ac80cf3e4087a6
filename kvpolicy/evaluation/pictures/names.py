"""The names of recipes beside the ends of their lines, each behind its mark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvpolicy.evaluation.pictures.labels import apart
from kvpolicy.evaluation.pictures.marks import Mark
from kvpolicy.evaluation.pictures.panel import ABOVE, BELOW, LEFT, SIZE, WIDTH, Panel
from kvpolicy.evaluation.runs.entrant import FULL

LINE = 17  # pixels from a name to the next
NAMES = 132  # pixels for the names
LOWEST = 260  # pixels


def height_for(names: int) -> int:
    """Return how high a picture with so many names is, in pixels."""
    return max(LOWEST, LINE * (names + 1) + ABOVE + BELOW)


def write_names(
    panel: Panel,
    ends: Sequence[tuple[float, str]],
    marks: Mapping[str, Mark],
    *,
    start: float,
) -> None:
    """Write each name beside the end of its line, behind its mark.

    `ends` are values and names. Lines end at `start`, a share of the axes' width.
    """
    order = sorted((panel.height_of(value), name) for value, name in ends)
    gap = LINE / panel.inner_height
    heights = apart([height for height, _ in order], gap=gap, top=1.0)
    axes = panel.axes
    inner = WIDTH - LEFT - NAMES
    for at, (height, name) in zip(heights, order, strict=True):
        colour = panel.colour(marks[name])
        axes.plot(
            [start, 1 + 10 / inner], [height, at], color=colour, linewidth=0.7,
            alpha=0.7,
            transform=axes.transAxes, clip_on=False,
        )  # fmt: skip
        axes.plot(
            [1 + 16 / inner], [at], linestyle="none", marker=marks[name].shape, color=colour,
            markersize=6.5, markeredgewidth=2 if name == FULL else 0, transform=axes.transAxes,
            clip_on=False,
        )  # fmt: skip
        axes.text(
            1 + 24 / inner, at, _short(name), color=panel.theme.ink, size=SIZE, va="center",
            transform=axes.transAxes,
        )  # fmt: skip


def _short(name: str, most: int = 17) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"

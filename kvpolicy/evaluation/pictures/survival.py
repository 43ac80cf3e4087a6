"""The picture of which tokens of one prompt survive."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm

from kvpolicy.evaluation.demo.specimen import Specimen, Survival
from kvpolicy.evaluation.pictures.theme import GAMMA, Canvas, Theme, colours, title

LEFT, WIDTH = 0.2, 0.575  # of the figure
ABOVE, BELOW = 0.66, 0.12  # inches
STRIP = 0.3  # half a strip's height, in distances between two strips


def draw_survival(figure: Canvas, specimen: Specimen, theme: Theme) -> None:
    """Draw a strip for each policy, and mark where the answer and the other facts stand."""
    title(
        figure,
        f"Which of the {len(specimen.words)} tokens of one prompt survive at budget "
        f"{specimen.budget}",
        "Shade: the share of layers and heads that still hold a token. Right: what the model "
        "then answers.",
        theme,
    )
    _draw_scale(figure, theme)
    axes = _axes(figure, specimen)
    full, *recipes = specimen.survivals
    palette = {full.name: theme.ink, **colours(each.name for each in recipes)}
    for row, each in enumerate(specimen.survivals):
        _draw_strip(axes, row, each, palette[each.name], theme)
    _mark_facts(axes, specimen, theme)


def _axes(figure: Canvas, specimen: Specimen) -> Axes:
    inches = figure.bbox.height / figure.dpi
    axes = figure.add_axes((LEFT, BELOW / inches, WIDTH, 1 - (ABOVE + BELOW) / inches))
    axes.set_axis_off()
    axes.set_xlim(0, len(specimen.words))
    axes.set_ylim(len(specimen.survivals) + 0.1, -0.95)
    return axes


def _draw_scale(figure: Canvas, theme: Theme) -> None:
    """Show what the shades mean, in the corner."""
    inches = figure.bbox.height / figure.dpi
    axes = figure.add_axes((0.885, 1 - 0.26 / inches, 0.075, 0.13 / inches))
    axes.set_axis_off()
    shades = LinearSegmentedColormap.from_list("shades", [theme.trough, theme.ink])
    axes.imshow(
        [[step / 99 for step in range(100)]],
        cmap=shades,
        norm=PowerNorm(GAMMA, 0, 1),
        aspect="auto",
    )
    for x, side, label in ((-6, "right", "none"), (105, "left", "all")):
        axes.text(x, 0, label, color=theme.muted, size=9.5, ha=side, va="center")


def _draw_strip(axes: Axes, row: int, each: Survival, colour: str, theme: Theme) -> None:
    length = len(each.shares)
    shades = LinearSegmentedColormap.from_list("shades", [theme.trough, colour])
    axes.imshow(
        [each.shares], cmap=shades, norm=PowerNorm(GAMMA, 0, 1), aspect="auto",
        interpolation="nearest",
        extent=(0, length, row + STRIP, row - STRIP),
    )  # fmt: skip
    axes.text(
        -0.015 * length, row, each.name, color=colour, size=10.5, weight="bold",
        ha="right", va="center",
    )  # fmt: skip
    mark, ink = ("✓", theme.ink) if each.right else ("✗", theme.muted)
    axes.text(
        1.015 * length, row, f"{mark} {each.answer or '(nothing)'}", color=ink, size=9.5,
        va="center",
    )  # fmt: skip


def _mark_facts(axes: Axes, specimen: Specimen, theme: Theme) -> None:
    """Point at the answer above every strip, and underline every fact below them."""
    last = len(specimen.survivals) - 1
    middle = (specimen.asked.start + specimen.asked.stop) / 2
    gaps = [row - 0.5 for row in range(last + 1)]
    axes.scatter([middle] * len(gaps), gaps, marker="v", s=22, color=theme.ink, linewidths=0)
    axes.text(middle, -0.68, "the answer", color=theme.ink, size=9.5, ha="center")
    for fact in specimen.facts:
        ink = theme.ink if specimen.asked.start in fact else theme.muted
        axes.plot([fact.start, fact.stop], [last + 0.55] * 2, color=ink, linewidth=3.5)
    axes.text(
        -0.015 * len(specimen.words), last + 0.55, "all facts", color=theme.muted, size=9.5,
        ha="right", va="center",
    )  # fmt: skip

"""The picture of accuracy over budget for many recipes: a grid, since so many lines would cross."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from kvpolicy.evaluation.demo.wording import percent
from kvpolicy.evaluation.pictures.theme import HUES, Canvas, Theme, title
from kvpolicy.evaluation.reports.comparison import Comparison

LEFT, WIDTH = 0.2, 0.77  # of the figure
ABOVE, BELOW = 0.75, 0.65  # inches
HUE, DARK_CELL = HUES[2], 0.55


def ranked_names(comparison: Comparison) -> list[str]:
    """Return the recipes, those with the most right answers over all budgets first."""
    right = dict.fromkeys(comparison.names, 0.0)
    for row in comparison.standings:
        right[row.name] += row.accuracy
    return sorted(comparison.names, key=lambda name: (-right[name], name))


def draw_grid(figure: Canvas, comparison: Comparison, theme: Theme) -> None:
    """Draw a row for each recipe and a column for each budget, shaded by what is right."""
    title(
        figure,
        "How many answers stay right when the cache shrinks",
        f"{comparison.prompts} prompts of {comparison.tokens} tokens, the same for all; the full "
        f"cache gets {percent(comparison.full.accuracy)} right.",
        theme,
    )
    axes = _axes(figure, comparison, theme)
    shades = LinearSegmentedColormap.from_list("shades", [theme.trough, HUE])
    for line, name in enumerate(ranked_names(comparison)):
        rows = comparison.of(name)
        for column, budget in enumerate(comparison.budgets):
            if row := rows.get(budget):
                _draw_cell(axes, column, line, row.accuracy, shades(row.accuracy), theme)
            else:
                axes.text(
                    column, line, "refused", color=theme.muted, size=8.5, ha="center", va="center"
                )


def _axes(figure: Canvas, comparison: Comparison, theme: Theme) -> Axes:
    inches = figure.bbox.height / figure.dpi
    axes = figure.add_axes((LEFT, BELOW / inches, WIDTH, 1 - (ABOVE + BELOW) / inches))
    names, budgets = ranked_names(comparison), comparison.budgets
    axes.set_xlim(-0.5, len(budgets) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xticks(
        range(len(budgets)),
        [f"{budget}\n{percent(budget / comparison.tokens)}" for budget in budgets],
    )
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("budget: positions kept per head, and as a share of the prompt")
    axes.xaxis.label.set(color=theme.muted, size=9.5)
    axes.tick_params(length=0, labelsize=10, labelcolor=theme.ink)
    axes.set_facecolor("none")
    axes.spines[:].set_visible(False)
    return axes


def _draw_cell(
    axes: Axes, column: int, line: int, accuracy: float, colour: object, theme: Theme
) -> None:
    axes.fill_between(
        [column - 0.48, column + 0.48], line - 0.46, line + 0.46, color=colour, linewidth=0
    )
    ink = "#ffffff" if accuracy > DARK_CELL else theme.ink
    axes.text(column, line, percent(accuracy), color=ink, size=9.5, ha="center", va="center")

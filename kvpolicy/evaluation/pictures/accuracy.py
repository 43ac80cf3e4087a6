"""The picture of accuracy over budget."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from kvpolicy.evaluation.demo.wording import percent
from kvpolicy.evaluation.pictures.labels import apart
from kvpolicy.evaluation.pictures.theme import Canvas, Theme, colours, title
from kvpolicy.evaluation.reports.comparison import Comparison, Standing

LABEL_GAP = 0.052  # of the vertical axis, between the labels of two lines
BOTTOM, TOP = -0.02, 1.04


def draw_accuracy(figure: Canvas, comparison: Comparison, theme: Theme) -> None:
    """Draw one line for each recipe, its 95 % interval as a band, and the full cache above."""
    axes = figure.add_axes((0.07, 0.16, 0.77, 0.67))
    title(
        figure,
        "How many answers stay right when the cache shrinks",
        f"{comparison.prompts} prompts of {comparison.tokens} tokens, the same for all. "
        "Bands: 95 % intervals.",
        theme,
    )
    palette = colours(comparison.names)
    labels = []
    if comparison.budgets:
        _scale(axes, comparison, theme)
        _draw_full(axes, comparison.full, theme)
        labels.append((comparison.full.accuracy, "full cache", theme.ink))
    for name in comparison.names:
        if rows := comparison.of(name):
            _draw_line(axes, rows, palette[name])
            labels.append((rows[max(rows)].accuracy, name, palette[name]))
    _write_labels(axes, labels)


def _scale(axes: Axes, comparison: Comparison, theme: Theme) -> None:
    budgets = comparison.budgets
    axes.set_facecolor("none")
    axes.set_xscale("log", base=2)
    axes.set_xlim(budgets[0] / 1.04, budgets[-1] * 1.04)
    axes.set_xticks(budgets, [_tick(budget, comparison.tokens) for budget in budgets])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("budget: positions kept per head, and as a share of the prompt")
    axes.xaxis.label.set(color=theme.muted, size=9.5)
    axes.set_ylim(BOTTOM, TOP)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: percent(share)))
    axes.grid(axis="y", color=theme.line, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9.5, labelcolor=theme.muted, pad=6)
    axes.spines[:].set_visible(False)


def _tick(budget: int, tokens: int) -> str:
    return f"{budget}\n{percent(budget / tokens)}"


def _draw_full(axes: Axes, full: Standing, theme: Theme) -> None:
    axes.axhspan(*full.interval, color=theme.ink, alpha=0.06, linewidth=0)
    axes.axhline(full.accuracy, color=theme.ink, linewidth=1.4, dashes=(4, 3))


def _draw_line(axes: Axes, rows: Mapping[int, Standing], colour: str) -> None:
    budgets, found = list(rows), list(rows.values())
    low, high = zip(*(row.interval for row in found), strict=True)
    axes.fill_between(budgets, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.plot(
        budgets, [row.accuracy for row in found], color=colour, linewidth=2.2, marker="o",
        markersize=5.5, markeredgewidth=0, clip_on=False,
    )  # fmt: skip


def _write_labels(axes: Axes, labels: list[tuple[float, str, str]]) -> None:
    """Write each line's name at its right end, moved apart where two would overlap."""
    labels.sort()
    heights = apart([height for height, _, _ in labels], gap=LABEL_GAP, top=TOP)
    for height, (_, name, colour) in zip(heights, labels, strict=True):
        axes.text(
            1.02, (height - BOTTOM) / (TOP - BOTTOM), name, color=colour, size=10.5,
            weight="bold", va="center", transform=axes.transAxes,
        )  # fmt: skip

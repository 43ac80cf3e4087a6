"""Draws a comparison: accuracy over budget, and which tokens of one prompt survive.

Names are drawn as they are written, also those with TeX in them.
"""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from kvpolicy.evaluation.demo.specimen import Specimen
from kvpolicy.evaluation.pictures.accuracy import draw_accuracy
from kvpolicy.evaluation.pictures.grid import draw_grid
from kvpolicy.evaluation.pictures.survival import draw_survival
from kvpolicy.evaluation.pictures.theme import HUES, LIGHT, Canvas, Theme
from kvpolicy.evaluation.reports.comparison import Comparison

WIDTH, CHART_HEIGHT, STRIP_HEIGHT, MARGIN_HEIGHT = 9.6, 4.8, 0.5, 1.3  # inches
LINE_HEIGHT, THIN_STRIP_HEIGHT = 0.28, 0.34  # inches, where there are many recipes


@rc_context({"text.parse_math": False})
def accuracy_picture(comparison: Comparison, theme: Theme = LIGHT) -> Figure:
    """Draw accuracy over budget: a line for each recipe, or a grid of more than there are hues."""
    figure = Figure(figsize=(WIDTH, _chart_height(comparison)), facecolor=theme.ground)
    _draw_chart(figure, comparison, theme)
    return figure


@rc_context({"text.parse_math": False})
def survival_picture(specimen: Specimen, theme: Theme = LIGHT) -> Figure:
    """Draw which tokens of one prompt survive, a strip for each policy."""
    figure = Figure(figsize=(WIDTH, _height(specimen)), facecolor=theme.ground)
    draw_survival(figure, specimen, theme)
    return figure


@rc_context({"text.parse_math": False})
def save_picture(path: Path, comparison: Comparison, specimen: Specimen) -> None:
    """Write both pictures, one above the other, into one image file."""
    heights = (_chart_height(comparison), _height(specimen))
    figure = Figure(figsize=(WIDTH, sum(heights)), facecolor=LIGHT.ground)
    halves: Any = figure.subfigures(2, 1, height_ratios=heights)
    _draw_chart(halves[0], comparison, LIGHT)
    draw_survival(halves[1], specimen, LIGHT)
    figure.savefig(path, dpi=200)


def svg(figure: Figure) -> str:
    """Return a picture as SVG, its letters drawn as outlines."""
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def _are_many(comparison: Comparison) -> bool:
    return len(comparison.names) > len(HUES)


def _draw_chart(figure: Canvas, comparison: Comparison, theme: Theme) -> None:
    draw = draw_grid if _are_many(comparison) else draw_accuracy
    draw(figure, comparison, theme)


def _chart_height(comparison: Comparison) -> float:
    many = _are_many(comparison)
    return 1.5 + LINE_HEIGHT * len(comparison.names) if many else CHART_HEIGHT


def _height(specimen: Specimen) -> float:
    count = len(specimen.survivals)
    return MARGIN_HEIGHT + count * (THIN_STRIP_HEIGHT if count > len(HUES) + 1 else STRIP_HEIGHT)

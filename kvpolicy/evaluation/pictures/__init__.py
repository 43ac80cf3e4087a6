"""Draws a comparison: accuracy over budget, and which tokens of one prompt survive."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from kvpolicy.evaluation.pictures.accuracy import draw_accuracy
from kvpolicy.evaluation.pictures.survival import draw_survival
from kvpolicy.evaluation.pictures.theme import LIGHT, Theme
from kvpolicy.evaluation.results import Comparison
from kvpolicy.evaluation.survival import Specimen

WIDTH, CHART_HEIGHT, STRIP_HEIGHT, MARGIN_HEIGHT = 9.6, 4.8, 0.5, 1.3  # inches


def accuracy_picture(comparison: Comparison, theme: Theme = LIGHT) -> Figure:
    """Draw accuracy over budget, a line for each recipe."""
    figure = Figure(figsize=(WIDTH, CHART_HEIGHT), facecolor=theme.ground)
    draw_accuracy(figure, comparison, theme)
    return figure


def survival_picture(specimen: Specimen, theme: Theme = LIGHT) -> Figure:
    """Draw which tokens of one prompt survive, a strip for each policy."""
    figure = Figure(figsize=(WIDTH, _height(specimen)), facecolor=theme.ground)
    draw_survival(figure, specimen, theme)
    return figure


def save_picture(path: Path, comparison: Comparison, specimen: Specimen) -> None:
    """Write both pictures, one above the other, into one image file."""
    heights = (CHART_HEIGHT, _height(specimen))
    figure = Figure(figsize=(WIDTH, sum(heights)), facecolor=LIGHT.ground)
    halves: Any = figure.subfigures(2, 1, height_ratios=heights)
    draw_accuracy(halves[0], comparison, LIGHT)
    draw_survival(halves[1], specimen, LIGHT)
    figure.savefig(path, dpi=200)


def svg(figure: Figure) -> str:
    """Return a picture as SVG, its letters drawn as outlines."""
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def _height(specimen: Specimen) -> float:
    return MARGIN_HEIGHT + STRIP_HEIGHT * len(specimen.survivals)

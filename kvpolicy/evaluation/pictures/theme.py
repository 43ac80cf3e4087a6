"""Colours of the pictures and the page: one for each recipe, on light and on dark ground."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import attrs
from matplotlib.figure import Figure, SubFigure

# Mid-tones that keep their contrast on either ground, apart for colour-blind readers too.
HUES = ("#7a6fd0", "#d9542b", "#1f83d6", "#1d9a6c", "#c79016", "#c74f8d", "#2a9aa8", "#8c6d4f")

GAMMA = 0.6  # of shades; below 1, so that what few heads hold can be seen

Canvas: TypeAlias = Figure | SubFigure


@attrs.frozen(kw_only=True)
class Theme:
    """What a picture is drawn with."""

    name: str
    ground: str
    ink: str
    muted: str
    line: str
    trough: str


LIGHT = Theme(
    name="light", ground="#ffffff", ink="#1c1e21", muted="#6a7078", line="#e4e5e7", trough="#f1f1f2"
)
DARK = Theme(
    name="dark", ground="#16181b", ink="#e9eaec", muted="#9aa1aa", line="#2f3338", trough="#22252a"
)


def colours(names: Iterable[str]) -> Mapping[str, str]:
    """Give each name its colour, the same for the same names.

    >>> colours(["b", "a"]) == colours(["a", "b"])
    True
    """
    return {name: HUES[index % len(HUES)] for index, name in enumerate(sorted(names))}


def title(figure: Canvas, heading: str, explanation: str, theme: Theme) -> None:
    """Write a heading and what explains the picture, left-aligned at its top."""
    height = figure.bbox.height / figure.dpi  # in inches
    figure.text(0.01, 1 - 0.1 / height, heading, color=theme.ink, size=14, weight="bold", va="top")
    figure.text(0.01, 1 - 0.38 / height, explanation, color=theme.muted, size=10, va="top")

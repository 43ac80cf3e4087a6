"""Writes a comparison as one HTML page that needs nothing beside itself."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from kvpolicy.evaluation.demo import wording
from kvpolicy.evaluation.demo.specimen import Specimen, Survival
from kvpolicy.evaluation.pictures import accuracy_picture, survival_picture, svg
from kvpolicy.evaluation.pictures.theme import DARK, GAMMA, LIGHT, Theme, colours
from kvpolicy.evaluation.reports.comparison import Comparison


def page(comparison: Comparison, specimen: Specimen, *, command: str) -> str:
    """Return the page as HTML; `command` is what makes it again."""
    environment = Environment(
        loader=PackageLoader("kvpolicy.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    palette = {name: _rgb(colour) for name, colour in colours(comparison.names).items()}
    return environment.get_template("page.html").render(
        conclusion=wording.conclusion(comparison).replace(" %", "\N{NO-BREAK SPACE}%"),
        command=command,
        light=LIGHT,
        dark=DARK,
        accuracy=_by_theme(lambda theme: accuracy_picture(comparison, theme)),
        survival=_by_theme(lambda theme: survival_picture(specimen, theme)),
        panels=[_panel(each, specimen, palette.get(each.name)) for each in specimen.survivals],
        shown=_shown(specimen),
        budget=specimen.budget,
        headings=wording.HEADINGS,
        rows=[(palette.get(row[0]), row) for row in wording.table(comparison)],
        notes=wording.footnotes(comparison),
    )


def _by_theme(draw: Callable[[Theme], Figure]) -> dict[str, str]:
    """Return a picture for either ground, as addresses that hold the whole image."""
    return {
        theme.name: "data:image/svg+xml;base64," + b64encode(svg(draw(theme)).encode()).decode()
        for theme in (LIGHT, DARK)
    }


def _shown(specimen: Specimen) -> str:
    """Return whose words are shown first: the first recipe that leads to the right answer."""
    recipes = specimen.survivals[1:] or specimen.survivals
    return next((each.name for each in recipes if each.right), recipes[0].name)


def _panel(each: Survival, specimen: Specimen, rgb: str | None) -> dict[str, Any]:
    return {
        "name": each.name,
        "rgb": rgb,
        "answer": each.answer or "(nothing)",
        "right": each.right,
        "words": list(_words(each, specimen)),
    }


def _words(each: Survival, specimen: Specimen) -> Iterator[tuple[str, float, bool]]:
    """Give each word, its shade, and whether it is part of the answer."""
    for place, (word, share) in enumerate(zip(specimen.words, each.shares, strict=True)):
        yield word, round(share**GAMMA, 2), place in specimen.asked


def _rgb(colour: str) -> str:
    """Write a colour as CSS wants its three parts.

    >>> _rgb("#ff0000")
    '255 0 0'
    """
    return " ".join(str(round(255 * part)) for part in to_rgb(colour))

"""A picture as SVG inside a page: its text is text, and its colours are the page's own."""

from __future__ import annotations

import re
from html import escape
from io import StringIO

from matplotlib import rc_context
from matplotlib.figure import Figure

from kvpolicy.evaluation.pictures.theme import Theme

PAGE = Theme(
    name="page", ground="none", ink="#010203", muted="#010204", line="#010205", trough="#010206"
)
"""Stands for the colours of a page, which differ on light and dark ground."""

_VARIABLES = {getattr(PAGE, name): f"var(--{name})" for name in ("ink", "muted", "line", "trough")}
_HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_DROPPED = re.compile(
    r"<metadata>.*?</metadata>|<!--.*?-->|<style type=.*?</style>"
    r"| id=\"(?!m[0-9a-f]|p[0-9a-f])\w+\""
    r"|(?<=<svg)[^>]*?(?= viewBox)| version=\"1.1\"| xmlns:?\w*=\"[^\"]*\"",
    re.DOTALL,
)
_FONT = re.compile(r"font: ([\d.]+)px [^;\"]*|font-family: [^;\"]*;? ?")


def inline(figure: Figure, words: str) -> str:
    """Return a picture that was drawn with `PAGE`; `words` say what it shows.

    >>> inline(Figure(figsize=(1, 1)), "Nothing.")[:64]
    '<svg viewBox="0 0 72 72" role="img" aria-label="Nothing."><title'
    """
    text = StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "kvpolicy"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = _FONT.sub(_font, _DROPPED.sub("", _HEAD.sub("", text.getvalue())))
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    said = escape(words)
    head, _, rest = re.sub(r">\s+<", "><", svg).partition(">")
    return f'{head} role="img" aria-label="{said}"><title>{said}</title>{rest.strip()}'


def _font(found: re.Match[str]) -> str:
    return f"font-size: {found[1]}px" if found[1] else ""

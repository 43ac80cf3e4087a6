"""Small tables for notebooks, which show what an object's `_repr_html_` returns."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape


def table(rows: Mapping[str, object]) -> str:
    """Return an HTML table with a line for each name and what stands beside it.

    >>> table({"seen": 9})
    '<table><tr><th align="left">seen</th><td align="left">9</td></tr></table>'
    """
    lines = (
        f'<tr><th align="left">{escape(name)}</th><td align="left">{escape(str(value))}</td></tr>'
        for name, value in rows.items()
    )
    return f"<table>{''.join(lines)}</table>"

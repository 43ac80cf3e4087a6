"""Tables and numbers as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kvpolicy.exactness.markdown import escaped


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column has words; the others have numbers. Cells are plain text.

    >>> print(table(["what", "s"], [["a", "1"]]))
    | what | s |
    |---|---:|
    | a | 1 |
    """
    rule = "|---|" + "---:|" * (len(headings) - 1)
    return "\n".join([_line(headings), rule, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(escaped, cells))} |"


def length(tokens: int) -> str:
    """Write a number of tokens; a multiple of 1,024 with "k".

    >>> length(131_072), length(1000)
    ('128k', '1,000')
    """
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else f"{tokens:,}"

"""How a recipe is told apart in every picture: a shape, a kind of line and a colour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from kvpolicy.evaluation.pictures.theme import HUES
from kvpolicy.evaluation.runs.entrant import FULL

SHAPES = ("o", "s", "^", "D", "v", "P", "X", "*", "<", "p", ">", "h", "d", "8", "H")
LINES = ("-", (0, (5, 1.6)), (0, (1.4, 1.4)), (0, (5, 1.5, 1.2, 1.5)), (0, (8, 2, 2, 2, 2, 2)))
"""Kinds of lines, as matplotlib describes dashes."""


@attrs.frozen(kw_only=True)
class Mark:
    """A shape, a kind of line, and the number of a colour; None is the colour of text."""

    shape: str
    line: str | tuple[int, tuple[float, ...]]
    hue: int | None


FULL_MARK = Mark(shape="_", line=(0, (2, 2)), hue=None)


def marks(names: Iterable[str]) -> Mapping[str, Mark]:
    """Give each name its mark: the same for the same names, and no two alike up to 120 names.

    The full cache has its own.

    >>> found = marks(str(number) for number in range(100))
    >>> len(set(found.values()))
    101
    >>> marks(["b", "a"]) == marks(["a", "b"])
    True
    """
    others = sorted(set(names) - {FULL})
    found = {
        name: Mark(
            shape=SHAPES[index % len(SHAPES)],
            line=LINES[index // len(HUES) % len(LINES)],
            hue=index % len(HUES),
        )
        for index, name in enumerate(others)
    }
    return {FULL: FULL_MARK, **found}

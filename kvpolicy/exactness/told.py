"""What a cache is told of the texts to come: spans, which of them stay whole, and a divider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from hypothesis import strategies as st

from kvpolicy.spans import Range

LONGEST = 5
"""Tokens of a span at most: budgets are small, too."""


@attrs.frozen
class Told:
    """Spans of each row of a batch, the names of those that stay whole, and a divider.

    >>> Told([{"a": (2, 4)}, {}], ["a"], None).protected
    [frozenset({2, 3}), frozenset()]
    """

    spans: Sequence[Mapping[str, Range]]
    protect: Sequence[str]
    divider: str | None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `policy.cache`."""
        return attrs.asdict(self, recurse=False)

    @property
    def protected(self) -> list[frozenset[int]]:
        """For each row the positions that stay."""
        return [
            frozenset(at for name in self.protect if name in row for at in range(*row[name]))
            for row in self.spans
        ]


@st.composite
def told(draw: st.DrawFn, lengths: list[int]) -> Told | None:
    """Draw what a cache is told of first prompts with so many tokens; None: nothing."""
    if not draw(st.booleans()):
        return None
    spans = [dict(zip("ab", draw(_ranges(length)), strict=False)) for length in lengths]
    names = sorted({name for row in spans for name in row})
    if not names:
        return None
    protect = draw(st.lists(st.sampled_from(names), unique=True))
    dividers = [None, "fair"] if protect else ["fair"]
    return Told(spans, protect, draw(st.sampled_from(dividers)))


@st.composite
def _ranges(draw: st.DrawFn, length: int) -> list[Range]:
    """Draw up to two ranges of a prompt, of which none overlaps the other."""
    found: list[Range] = []
    for start in sorted(draw(st.lists(st.integers(0, length - 1), max_size=2, unique=True))):
        first = max(start, found[-1][1] if found else 0)
        stop = min(length, first + draw(st.integers(1, LONGEST)))
        if first < stop:
            found.append((first, stop))
    return found

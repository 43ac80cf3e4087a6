"""Names beside a picture's right edge, moved apart where two would overlap."""

from __future__ import annotations

from collections.abc import Sequence


def apart(heights: Sequence[float], *, gap: float, top: float) -> list[float]:
    """Push ascending heights apart, upwards first and back down from the top.

    >>> apart([0.5, 0.5, 1.0], gap=0.125, top=1.0)
    [0.5, 0.625, 1.0]
    """
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else height)
    ceiling = top
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved

"""How a cost grows with the length of a prompt: least squares, and the exponent of a power law."""

from __future__ import annotations

from collections.abc import Mapping
from math import log

import attrs


@attrs.frozen
class Line:
    """y = slope x + intercept, and the share of the variance that it explains."""

    slope: float
    intercept: float
    r_squared: float


@attrs.frozen
class Growth:
    """The line through costs by length; and `exponent`, whose slope is p in cost ~ length^p."""

    line: Line
    exponent: Line


def growth(costs: Mapping[int, float]) -> Growth:
    """Fit both; the exponent is fitted to the logarithms.

    >>> growth({1: 3.0, 2: 5.0, 4: 9.0}).line
    Line(slope=2.0, intercept=1.0, r_squared=1.0)
    >>> round(growth({1: 3.0, 2: 6.0, 4: 12.0}).exponent.slope, 6)
    1.0
    """
    logs = {log(length): log(cost) for length, cost in costs.items()}
    lengths = {float(length): cost for length, cost in costs.items()}
    return Growth(line=line(lengths), exponent=line(logs))


def line(points: Mapping[float, float]) -> Line:
    """Fit a line by least squares."""
    count = len(points)
    mean_x, mean_y = sum(points) / count, sum(points.values()) / count
    spread = sum((x - mean_x) ** 2 for x in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points.items()) / spread
    intercept = mean_y - slope * mean_x
    residual = sum((y - slope * x - intercept) ** 2 for x, y in points.items())
    total = sum((y - mean_y) ** 2 for y in points.values())
    return Line(slope=slope, intercept=intercept, r_squared=1 - residual / total if total else 1.0)

"""How sure a share of right answers is."""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

from kvpolicy.errors import InvalidValueError

NORMAL_95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution: two-sided 95 %."""


class Interval(NamedTuple):
    """The lower and upper bound of a share."""

    low: float
    high: float


def wilson_interval(successes: int, trials: int, *, quantile: float = NORMAL_95) -> Interval:
    """Return the Wilson score interval of a share, 95 % unless told otherwise.

    With p = successes / trials, n = trials and the normal quantile z:
    (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)
    (Wilson, JASA 22, 1927, https://doi.org/10.1080/01621459.1927.10502953).
    Raises InvalidValueError unless 0 <= successes <= trials and trials > 0.

    >>> low, high = wilson_interval(9, 10)
    >>> round(low, 3), round(high, 3)
    (0.596, 0.982)
    """
    if not 0 <= successes <= trials or trials == 0:
        raise InvalidValueError(
            f"an interval needs 0 <= successes <= trials and at least one trial, but got "
            f"{successes} successes in {trials} trials."
        )
    share, square = successes / trials, quantile * quantile
    centre = share + square / (2 * trials)
    spread = quantile * sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    whole = 1 + square / trials
    # Rounding must not push a bound past 0 or 1, nor the interval off its own share.
    low, high = (centre - spread) / whole, (centre + spread) / whole
    return Interval(max(0.0, min(low, share)), min(1.0, max(high, share)))

"""Whether prompts may be exchangeable, as far as their lengths tell."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

from kvpolicy.evaluation.runs.row import Row

RARE = 0.01
"""A difference of lengths that is less probable than this is named."""


def doubts(rows: Sequence[Row], coming: Sequence[int] = ()) -> Iterator[str]:
    """Yield why calibration prompts may not be exchangeable with one another or with others.

    `rows` are one entrant's, in the order in which they were asked; `coming` are the lengths, in
    tokens, of prompts for which the budget is meant.
    """
    lengths = [row.tokens for row in rows if row.tokens is not None]
    half = len(lengths) // 2
    if half and differ(lengths[:half], lengths[half:]):
        yield (
            f"The first half of the calibration prompts has a median of {median(lengths[:half]):g} "
            f"tokens, the second one of {median(lengths[half:]):g}. The guarantee is for prompts "
            "that are drawn like all of them together. Calibrate each kind by itself if you use "
            "one kind."
        )
    if coming and lengths and differ(lengths, coming):
        yield (
            f"The calibration prompts have {min(lengths)} to {max(lengths)} tokens, with a median "
            f"of {median(lengths):g}; those to come have {min(coming)} to {max(coming)}, with a "
            f"median of {median(coming):g}. They are not exchangeable in length, so the guarantee "
            "does not hold for them. Calibrate on prompts like those."
        )
    repeated = len(rows) - len({row.prompt or row.sample for row in rows})
    if repeated:
        yield (
            f"{repeated} of {len(rows)} calibration prompts repeat another. They are not "
            "independent, and count as more prompts than there are."
        )


def differ(some: Sequence[float], others: Sequence[float]) -> bool:
    """Return whether two samples of lengths have different distributions.

    The two-sample test of Kolmogorov and Smirnov, with Stephens' approximation (1970).

    >>> differ([100, 120, 140] * 10, [500, 600] * 10), differ([100, 120] * 9, [120, 100] * 8)
    (True, False)
    """
    gap = max(abs(_share(some, value) - _share(others, value)) for value in {*some, *others})
    size = math.sqrt(len(some) * len(others) / (len(some) + len(others)))
    x = (size + 0.12 + 0.11 / size) * gap
    if x < 0.3:  # the series does not converge, and the probability is 1
        return False
    series = sum((-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 101))
    return bool(2 * series < RARE)


def _share(values: Sequence[float], limit: float) -> float:
    return sum(value <= limit for value in values) / len(values)

"""Conformal risk control: the smallest choice whose loss exceeds a bound with a small probability.

Angelopoulos, Bates, Fisch, Lei, Schuster, "Conformal Risk Control", ICLR 2024,
https://arxiv.org/abs/2208.02814, Theorem 1, for the loss L = 1 where a sample's loss exceeds the
bound, and 0 elsewhere.

Choices are in order: each later one keeps more. The theorem needs a loss that does not grow along
this order. Ours may: one more position can spoil an answer. So a choice is charged with the largest
loss of itself and of all later ones. With n calibration samples, k of which exceed the bound then,

    the first choice with (k + 1) / (n + 1) <= alpha

exceeds the bound on the next sample with probability at most alpha. The probability is over the
calibration samples and the next one together. The assumption is that all n + 1 are exchangeable:
drawn alike, and independent of one another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from kvpolicy.errors import InvalidValueError, shown

SLACK = 1e-12
"""What rounding may add to a probability: (9 + 1) / (99 + 1) is 0.1."""


def least_samples(alpha: float) -> int:
    """Return how many samples it takes to promise anything at `alpha`: k = 0 must be enough.

    >>> least_samples(0.1), least_samples(0.05)
    (9, 19)
    """
    return math.ceil(1 / alpha - 1 - SLACK)


def check_alpha(alpha: float) -> None:
    """Raise InvalidValueError for a probability outside (0, 1)."""
    number = isinstance(alpha, float | int) and not isinstance(alpha, bool)
    if not number or not 0 < alpha < 1:
        raise InvalidValueError(
            f"alpha is a probability, above 0 and below 1, but is {shown(alpha)}. Give for example "
            "0.1: then the loss exceeds the bound on one prompt in ten at most."
        )


def check_samples(count: int, alpha: float) -> None:
    """Raise InvalidValueError if so few samples can promise nothing at `alpha`."""
    if count < least_samples(alpha):
        raise InvalidValueError(
            f"{count} calibration prompts are too few for alpha {alpha:g}: even if none of them "
            f"exceeds the bound, the next one may with probability 1 / {count + 1}. Give at least "
            f"{least_samples(alpha)} prompts, or a larger alpha."
        )


def exceeding(losses: Sequence[Sequence[float]], bound: float) -> list[int]:
    """Count for each choice the samples whose loss exceeds the bound there, or at a later choice.

    `losses` has a row for each sample. A loss that is NaN counts as one that exceeds.

    >>> exceeding([[0.5, 0.0, 0.2], [0.3, 0.0, 0.0]], bound=0.1)
    [2, 1, 1]
    """
    counts = [0] * len(losses[0])
    for row in losses:
        last = max((place for place, loss in enumerate(row) if not loss <= bound), default=-1)
        for place in range(last + 1):
            counts[place] += 1
    return counts


def risk(exceeded: int, samples: int) -> float:
    """Return the largest probability with which the next sample exceeds the bound.

    >>> risk(9, 99)
    0.1
    """
    return (exceeded + 1) / (samples + 1)


def smallest(losses: Sequence[Sequence[float]], *, bound: float, alpha: float) -> int | None:
    """Return the place of the first choice that keeps the promise; None if none does.

    >>> smallest([[0.9, 0.0]] * 19, bound=0.1, alpha=0.05)
    1

    Raises InvalidValueError for an alpha outside (0, 1), and for too few samples.
    """
    check_alpha(alpha)
    check_samples(len(losses), alpha)
    for place, count in enumerate(exceeding(losses, bound)):
        if risk(count, len(losses)) <= alpha + SLACK:
            return place
    return None

"""How sure a figure is, and the difference of two figures on the same samples, by the bootstrap.

The samples are drawn again with replacement, `DRAWS` times, and the interval holds the middle 95 %
of the figures (the percentile bootstrap: Efron, 1979). The draws have a fixed seed: the same scores
give the same interval. Two entrants are compared on the same draws of the same samples, so that
what makes a sample hard for both of them cancels out. Samples of one cluster, such as questions
about the same text, are drawn together.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.measures.interval import Interval

DRAWS = 2000
SEED = 42
_LARGEST = 2_000_000
"""How many numbers are drawn at once at most."""


class Estimate(NamedTuple):
    """A figure and its 95 % interval; one cluster has no spread, and no interval."""

    value: float
    interval: Interval | None


class Scores(NamedTuple):
    """A score and a weight for each sample; `exponential`: the figure is a perplexity.

    `clusters` has a name for each sample; samples of one name are drawn together. If it is empty,
    each sample is a cluster of its own. With `of_set` the figure is none of single samples: it is
    made of the sums of what `counts` has for each sample, such as F1 of four counts.
    """

    scores: Sequence[float]
    weights: Sequence[float]
    exponential: bool = False
    clusters: Sequence[Hashable] = ()
    counts: Sequence[Sequence[float]] = ()
    of_set: Callable[[np.ndarray], np.ndarray] | None = None

    def drawn(self) -> int:
        """Return how many clusters there are to draw from."""
        return len(set(self.clusters)) if self.clusters else len(self.scores)

    def figures(self, draws: int) -> np.ndarray:
        """Return the figure of each of so many draws, after the figure of all samples."""
        counted, figure = self._counted()
        totals = np.stack([self._added_up(each) for each in counted])
        samples = totals.shape[1]
        sums = [totals.sum(-1, keepdims=True)]
        sums += [totals[:, rows].sum(-1) for rows in _rows(samples, draws)]
        found = figure(np.concatenate(sums, axis=1))
        return np.exp(found) if self.exponential else found

    def _counted(self) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """Return what is counted of each sample, [kinds, samples], and the figure of the sums."""
        if self.of_set is not None:
            return np.asarray(self.counts, dtype=np.float64).T, self.of_set
        weights = np.asarray(self.weights, dtype=np.float64)
        return np.stack([np.asarray(self.scores, dtype=np.float64) * weights, weights]), _mean

    def _added_up(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of each cluster."""
        if not self.clusters:
            return values
        places = {name: place for place, name in enumerate(dict.fromkeys(self.clusters))}
        return np.bincount([places[name] for name in self.clusters], values)


def estimate(scores: Scores) -> Estimate:
    """Return the figure of all samples and its interval.

    >>> estimate(Scores([1.0, 1.0, 0.0, 1.0], [1, 1, 1, 1]))
    Estimate(value=0.75, interval=Interval(low=0.25, high=1.0))

    Raises InvalidValueError if there is no sample.
    """
    return _estimate(_checked(scores), None)


def difference(scores: Scores, other: Scores) -> Estimate:
    """Return by how much the figure is above the other's; entry i of both is the same sample.

    >>> difference(Scores([1.0, 0.5], [1, 1]), Scores([0.75, 0.25], [1, 1]))
    Estimate(value=0.25, interval=Interval(low=0.25, high=0.25))

    Raises InvalidValueError if there is no sample, or not the same number of both.
    """
    if len(scores.scores) != len(other.scores):
        raise InvalidValueError(
            f"a paired difference needs the same samples, but got {len(scores.scores)} scores and "
            f"{len(other.scores)}. Leave out what only one of them has."
        )
    return _estimate(_checked(scores), other)


def _estimate(scores: Scores, other: Scores | None) -> Estimate:
    draws = DRAWS if scores.drawn() > 1 else 0
    figures = scores.figures(draws)
    if other is not None:
        figures = figures - other.figures(draws)
    value = float(figures[0])
    if not draws:
        return Estimate(value, None)
    low, high = np.quantile(figures[1:], (0.025, 0.975))
    return Estimate(value, Interval(float(low), float(high)))


def _checked(scores: Scores) -> Scores:
    if not len(scores.scores):
        raise InvalidValueError("there are no scores, so there is no figure. Give one or more.")
    return scores


def _rows(samples: int, draws: int) -> list[np.ndarray]:
    """Return which clusters each draw has; the same for all who have so many of them."""
    generator = np.random.default_rng(SEED)
    at_once = max(1, _LARGEST // samples)
    return [
        generator.integers(samples, size=(min(at_once, draws - done), samples))
        for done in range(0, draws, at_once)
    ]


def _mean(sums: np.ndarray) -> np.ndarray:
    """Return the weighted mean of each draw, from the sums of scores and of weights."""
    mean: np.ndarray = sums[0] / sums[1]
    return mean

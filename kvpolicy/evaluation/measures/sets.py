"""Figures of all samples together, made of how often a yes-or-no question was answered how.

The second of two choices is the positive one, as GLUE's label 1 is. Each sample is one of four
outcomes: TP and FN where the right choice is the positive one, FP and TN where it is the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from jaxtyping import Float64

from kvpolicy.errors import InvalidValueError
from kvpolicy.task import Sample

OUTCOMES = ("true positive", "false positive", "false negative", "true negative")
"""The outcomes, as the parts of a row name them; one of them is 1 and the others are 0."""

Counts: TypeAlias = Float64[np.ndarray, "outcomes=4 *draws"]
"""How often each of `OUTCOMES` was, or its share, in one set or in many."""
Figures: TypeAlias = Float64[np.ndarray, " *draws"]
"""A figure of one set, or of many."""


def outcome(text: str, sample: Sample) -> Mapping[str, float]:
    """Return which outcome a choice is, and whether it is right, which is the accuracy.

    >>> sample = Sample(name="1", choices=("no", "yes"), answers=("no",))
    >>> [name for name, is_so in outcome("yes", sample).items() if is_so]
    ['false positive']

    Raises InvalidValueError unless the sample has two choices and one of them as its answer.
    """
    choices, answers = sample.choices, sample.answers
    if len(choices) != 2 or len(answers) != 1 or answers[0] not in choices:
        raise InvalidValueError(
            f"sample {sample.name!r} has {len(choices)} choices and {len(answers)} answers. F1 of "
            "a set and Matthews' correlation need two choices, the second of which is the positive "
            "one, and one of them as the answer."
        )
    said, right = choices.index(text), choices.index(answers[0])
    found = f"{'true' if said == right else 'false'} {'positive' if said else 'negative'}"
    return {"accuracy": float(said == right), **{name: float(name == found) for name in OUTCOMES}}


def f1_of_set(counts: Counts) -> Figures:
    """Return 2 TP / (2 TP + FP + FN), and 0 where there is no positive at all.

    That is F1 of the positive choice (van Rijsbergen, Information Retrieval, 1979), as
    `sklearn.metrics.f1_score` computes it.

    >>> float(f1_of_set(np.array([6.0, 2.0, 1.0, 3.0])))
    0.8
    """
    positive, false, missed, _ = counts
    return _divided(2 * positive, 2 * positive + false + missed)


def matthews_correlation(counts: Counts) -> Figures:
    """Return (TP TN - FP FN) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN)).

    It is 0 where a factor is 0: all choices, or all answers, are the same (Matthews, Biochimica et
    Biophysica Acta 405, 1975, https://doi.org/10.1016/0005-2795(75)90109-9). That is
    `sklearn.metrics.matthews_corrcoef`.

    >>> float(matthews_correlation(np.array([6.0, 2.0, 1.0, 3.0])).round(3))
    0.478
    """
    positive, false, missed, negative = counts
    factors = (positive + false) * (positive + missed) * (negative + false) * (negative + missed)
    return _divided(positive * negative - false * missed, np.sqrt(factors))


SET_FIGURES: Mapping[str, Callable[[Counts], Figures]] = {
    "matthews_correlation": matthews_correlation,
    "f1_of_set": f1_of_set,
}
"""What computes the figure of a metric that no single sample has, by the metric's name."""


def _divided(above: Figures, below: Figures) -> Figures:
    found: Figures = np.divide(above, below, out=np.zeros_like(above), where=below != 0)
    return found

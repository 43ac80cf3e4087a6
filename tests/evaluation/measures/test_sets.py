"""Figures of all samples together: as counted by hand, and as scikit-learn computes them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.measures.sets import (
    OUTCOMES,
    SET_FIGURES,
    f1_of_set,
    matthews_correlation,
    outcome,
)
from kvpolicy.task import Sample


@pytest.fixture(scope="module")
def metrics():
    """Import scikit-learn, which takes seconds, before an example is timed."""
    return pytest.importorskip("sklearn.metrics")


def sample(answer, choices=(" no", " yes")):
    return Sample(name="7", choices=choices, answers=(answer,))


@pytest.mark.parametrize(
    ("said", "right", "expected"),
    [
        (" yes", " yes", "true positive"),
        (" yes", " no", "false positive"),
        (" no", " yes", "false negative"),
        (" no", " no", "true negative"),
    ],
)
def test_the_second_choice_is_the_positive_one(said, right, expected):
    found = dict(outcome(said, sample(right)))
    assert found.pop("accuracy") == (said == right)
    assert found == {name: float(name == expected) for name in OUTCOMES}


def test_f1_by_hand():
    # Precision 3/4 and recall 3/5: 2 * 0.45 / 1.35.
    assert f1_of_set(np.array([3.0, 1.0, 2.0, 4.0])) == pytest.approx(2 / 3)


def test_matthews_correlation_by_hand():
    assert matthews_correlation(np.array([3.0, 1.0, 2.0, 4.0])) == pytest.approx(10 / 600**0.5)
    assert matthews_correlation(np.array([5.0, 0.0, 0.0, 3.0])) == pytest.approx(1)
    assert matthews_correlation(np.array([0.0, 5.0, 3.0, 0.0])) == pytest.approx(-1)


def test_many_sets_at_once_are_each_of_them_alone():
    sets = np.random.default_rng(0).integers(0, 9, (4, 50)).astype(float)
    for figure in SET_FIGURES.values():
        assert figure(sets) == pytest.approx([float(figure(each)) for each in sets.T])


@given(answers=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40))
def test_the_figures_are_those_of_scikit_learn(metrics, answers):
    said, right = zip(*answers, strict=True)
    rows = [
        outcome(f" {'yes' if a else 'no'}", sample(f" {'yes' if b else 'no'}")) for a, b in answers
    ]
    counts = np.array([sum(row[name] for row in rows) for name in OUTCOMES])
    assert f1_of_set(counts) == pytest.approx(
        metrics.f1_score(right, said, zero_division=0.0), abs=1e-12
    )
    if len({*said, *right}) == 2:  # of a single label scikit-learn warns
        assert matthews_correlation(counts) == pytest.approx(
            metrics.matthews_corrcoef(right, said), abs=1e-12
        )


@pytest.mark.parametrize(
    "asked",
    [
        sample(" maybe"),
        sample(" no", choices=(" no", " yes", " maybe")),
        Sample(name="7", choices=(" no", " yes"), answers=(" no", " yes")),
    ],
)
def test_what_is_no_yes_or_no_is_refused(asked):
    with pytest.raises(InvalidValueError, match=r"sample '7' has .* need two choices"):
        outcome(" no", asked)

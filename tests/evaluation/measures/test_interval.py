"""The interval around a share of right answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.measures.interval import wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_the_published_one(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_share_and_stays_within_0_and_1(counts):
    successes, trials = counts
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1


@given(st.integers(0, 50))
def test_more_trials_of_the_same_share_narrow_it(successes):
    few, many = wilson_interval(successes, 50), wilson_interval(20 * successes, 1000)
    assert many.high - many.low < few.high - few.low


@pytest.mark.parametrize("counts", [(-1, 10), (11, 10), (0, 0)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(InvalidValueError, match="at least one trial"):
        wilson_interval(*counts)

"""Intervals of figures, and of differences between entrants on the same samples."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.measures.bootstrap import Scores, difference, estimate


def scores(values, weights=None, exponential=False):
    return Scores(list(values), [1.0] * len(values) if weights is None else weights, exponential)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = estimate(scores(values))
    half = 1.96 * values.std() / sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_about_95_of_100_intervals_hold_the_truth():
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        low, high = estimate(scores(generator.normal(0, 1, 60))).interval
        held += low <= 0 <= high
    assert 180 <= held <= 199


def test_pairing_takes_out_what_makes_a_sample_hard_for_all():
    generator = np.random.default_rng(2)
    hard = generator.normal(0, 10, 100)
    mine, theirs = hard + 1 + generator.normal(0, 0.1, 100), hard
    low, high = difference(scores(mine), scores(theirs)).interval
    assert 0.9 < low < 1 < high < 1.1
    apart = [estimate(scores(each)).interval for each in (mine, theirs)]
    assert all(high - low > 2 for low, high in apart)


def test_a_perplexity_weighs_samples_by_their_tokens():
    found = estimate(scores([1.0, 3.0], [3.0, 1.0], exponential=True))
    assert found.value == pytest.approx(np.exp(1.5))
    assert found.interval == pytest.approx((np.e, np.exp(3)))


def test_samples_of_a_cluster_are_drawn_together():
    # Copies of a sample say nothing new: the interval is that of the samples without copies.
    values = np.random.default_rng(5).normal(0, 1, 40)
    alone = estimate(scores(values))
    copied = Scores(list(values.repeat(25)), [1.0] * 1000, clusters=list(np.arange(40).repeat(25)))
    assert estimate(copied).interval == pytest.approx(alone.interval)
    apart = estimate(scores(copied.scores)).interval
    assert apart.high - apart.low < 0.3 * (alone.interval.high - alone.interval.low)


def test_a_cluster_counts_by_the_weights_of_all_its_samples():
    found = estimate(Scores([0.0, 0.0, 0.0, 1.0], [1, 1, 1, 1], clusters=["a", "a", "a", "b"]))
    assert found == (0.25, (0.0, 1.0))


def test_one_cluster_has_no_interval():
    assert estimate(Scores([0.0, 1.0], [1, 1], clusters=["a", "a"])) == (0.5, None)


def sets(said, right):
    """Return the scores of a set whose choices are right as often as of all that are made."""
    counts = [[float(a and b), float(a), float(b)] for a, b in zip(said, right, strict=True)]

    def dice(sums):
        return 2 * sums[0] / np.maximum(sums[1] + sums[2], 1)

    return Scores([0.0] * len(said), [1.0] * len(said), counts=counts, of_set=dice)


def test_a_figure_of_a_set_is_made_of_the_sums_of_each_draw():
    generator = np.random.default_rng(6)
    right = generator.random(300) < 0.4
    said = right ^ (generator.random(300) < 0.2)
    found = estimate(sets(said, right))
    assert found.value == pytest.approx(2 * (said & right).sum() / (said.sum() + right.sum()))
    drawn = []
    for _ in range(2000):
        rows = generator.integers(300, size=300)
        drawn.append(estimate(sets(said[rows], right[rows])._replace(clusters=["a"] * 300)).value)
    assert found.interval == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.015)


def test_figures_of_sets_are_compared_on_the_same_draws():
    generator = np.random.default_rng(7)
    right = generator.random(200) < 0.5
    said = right ^ (generator.random(200) < 0.3)
    assert difference(sets(said, right), sets(said, right)) == (0, (0, 0))
    better = np.where(np.arange(200) < 20, right, said)
    low, high = difference(sets(better, right), sets(said, right)).interval
    assert 0 < low < high < 0.1


def test_the_same_scores_give_the_same_interval():
    values = np.random.default_rng(3).random(30)
    assert estimate(scores(values)) == estimate(scores(values))


def test_more_samples_than_fit_at_once_are_drawn_in_portions(monkeypatch):
    values = np.random.default_rng(4).random(50)
    whole = estimate(scores(values))
    monkeypatch.setattr("kvpolicy.evaluation.measures.bootstrap._LARGEST", 5000)
    assert estimate(scores(values)).interval == pytest.approx(whole.interval, abs=0.01)


def test_one_sample_has_a_figure_but_no_interval():
    assert estimate(scores([0.5])) == (0.5, None)
    assert difference(scores([0.5]), scores([0.25])) == (0.25, None)


def test_no_samples_and_unequal_samples_are_refused():
    with pytest.raises(InvalidValueError, match="there are no scores"):
        estimate(scores([]))
    with pytest.raises(InvalidValueError, match="same samples, but got 2 scores and 1"):
        difference(scores([1.0, 2.0]), scores([1.0]))

"""Perplexity over position."""

from __future__ import annotations

import math

import pytest

from kvpolicy.evaluation.reports.curves import by_budget, curves


def test_losses_of_all_texts_are_averaged_at_each_stretch(make_row):
    rows = [
        make_row("1", score=1.5, curve=(1.0, 2.0), tokens=100),
        make_row("2", score=2.5, curve=(2.0, 3.0), tokens=100),
    ]
    [curve] = curves(rows)
    assert curve.values == pytest.approx((math.exp(1.5), math.exp(2.5)))
    assert curve.ends == (50, 100)
    assert curve.in_tokens


def test_texts_of_different_lengths_are_compared_by_their_share(make_row):
    rows = [
        make_row("1", score=1.0, curve=(1.0, 1.0, 2.0, 2.0), tokens=100),
        make_row("2", score=1.0, curve=(1.0, 2.0), tokens=3),
    ]
    [curve] = curves(rows)
    assert curve.values == pytest.approx((math.exp(1), math.exp(2)))
    assert curve.ends == (0.5, 1)
    assert not curve.in_tokens


def test_rows_without_a_curve_and_failed_ones_are_left_out(make_row):
    failed = make_row("1", "snapkv", 8, None, curve=(1.0,), error="failed")
    assert curves([make_row("1"), failed]) == []
    assert by_budget([]) == []


def test_a_loss_beyond_all_numbers_is_infinite(make_row):
    [curve] = curves([make_row("1", score=1.0, curve=(1.0, 1e6), tokens=2)])
    assert curve.values[1] == math.inf


def test_the_full_cache_stands_beside_each_budget(make_row):
    rows = [
        make_row("1", entrant, budget, 1.0, curve=(1.0, 2.0))
        for entrant, budget in (("full", None), ("a", 0.5), ("a", 8), ("b", 8))
    ]
    assert [
        (title, [each.entrant for each in group]) for title, group in by_budget(curves(rows))
    ] == [
        (", at 8", ["full", "a", "b"]),
        (", at 50 %", ["full", "a"]),
    ]
    assert [title for title, _ in by_budget(curves(rows[:1]))] == [""]

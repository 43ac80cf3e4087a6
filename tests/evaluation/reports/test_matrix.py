"""Figures of a table: the best, and better or worse than the baseline."""

from __future__ import annotations

import pytest

from kvpolicy.evaluation.measures.bootstrap import Estimate
from kvpolicy.evaluation.measures.interval import Interval
from kvpolicy.evaluation.reports.matrix import matrix, overall_matrix, verdict
from kvpolicy.evaluation.reports.overview import overview
from kvpolicy.evaluation.reports.summary import summary


@pytest.mark.parametrize(
    ("low", "high", "larger_is_better", "said"),
    [
        (0.1, 0.2, True, "better"),
        (0.1, 0.2, False, "worse"),
        (-0.2, -0.1, True, "worse"),
        (-0.2, -0.1, False, "better"),
        (0.0, 0.1, True, "even"),
        (-0.1, 0.1, False, "even"),
    ],
)
def test_a_difference_is_one_if_its_interval_does_not_hold_0(low, high, larger_is_better, said):
    difference = Estimate((low + high) / 2, Interval(low, high))
    assert verdict(difference, larger_is_better=larger_is_better) == said


def test_without_an_interval_nothing_is_said():
    assert verdict(None, larger_is_better=True) == "even"
    assert verdict(Estimate(0.5, None), larger_is_better=True) == "even"


def test_all_that_are_best_are_marked(make_row):
    rows = [make_row("1"), *(make_row("1", name, 8, 0.5) for name in ("a", "b", "c"))]
    lines = dict(matrix(summary(rows))["matrix"])
    assert [lines[name][0].best for name in ("full", "a", "b", "c")] == [False, True, True, True]


def test_the_best_perplexity_is_the_lowest(make_row):
    rows = [make_row("1", name, 8, score, asks="stream") for name, score in (("a", 2), ("b", 3))]
    lines = dict(matrix(summary([make_row("1", asks="stream"), *rows]))["matrix"])
    assert [lines[name][0].best for name in ("a", "b")] == [True, False]


def test_the_overview_marks_the_best_mean(rows, make_row):
    other = [make_row(row.sample, row.entrant, row.budget, row.score, task="b") for row in rows]
    lines = dict(overall_matrix(overview(summary([*rows, *other])))["matrix"])
    assert [lines[name][0]["best"] for name in ("full", "restkv", "snapkv")] == [False, True, False]
    assert lines["snapkv"][1] is None

"""What nothing beats at its cost."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpolicy.evaluation.reports.costs import COSTS, Point, front
from kvpolicy.evaluation.reports.summary import summary

numbers = st.integers(0, 5).map(float)


@pytest.mark.parametrize("larger_is_better", [True, False])
@given(st.lists(st.tuples(numbers, numbers), max_size=12))
def test_the_front_holds_what_is_not_beaten(larger_is_better, pairs):
    sign = 1 if larger_is_better else -1
    points = [Point(cell=None, cost=cost, score=score) for cost, score in sorted(pairs)]
    found = {(each.cost, each.score) for each in front(points, larger_is_better=larger_is_better)}
    expected = {
        (a.cost, a.score)
        for a in points
        if not any(
            b.cost <= a.cost
            and sign * b.score >= sign * a.score
            and (b.cost, b.score) != (a.cost, a.score)
            for b in points
        )
    }
    assert found == expected


def test_what_has_no_figure_or_no_finite_score_is_left_out(rows, make_row):
    lost = make_row("1", "h2o", 64, None, error="failed")
    endless = make_row("1", "tova", 64, 1e6, asks="likelihood")
    found = COSTS[0].points(summary([*rows, lost]))
    assert [(each.cell.title, each.cost) for each in found] == [
        ("restkv at 25 %", 1024),
        ("restkv at 64", 1024),
        ("snapkv at 64", 1024),
        ("full", 4096),
    ]
    with pytest.warns(RuntimeWarning, match="overflow"):
        [cell] = [cell for cell in summary([*rows, endless]) if cell.entrant == "tova"]
    assert math.isinf(cell.estimate.value)
    assert COSTS[0].points([cell]) == []


def test_costs_are_written_with_their_units():
    assert [cost.write(0.5) for cost in COSTS] == ["0 B", "50 %", "500.0 ms"]

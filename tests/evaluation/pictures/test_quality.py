"""A line for each recipe, its intervals, and its name beside its mark."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from kvpolicy.evaluation.measures.bootstrap import Estimate
from kvpolicy.evaluation.pictures.marks import marks
from kvpolicy.evaluation.pictures.quality import quality_picture


def drawn(cells):
    figure = quality_picture(cells, marks(cell.entrant for cell in cells))
    return None if figure is None else figure.axes[0]


def test_every_recipe_and_the_full_cache_are_named(cells):
    assert [text.get_text() for text in drawn(cells).texts] == ["snapkv", "restkv", "full"]


def test_budgets_are_written_and_evenly_apart_where_each_is_twice_the_last(cells):
    axes = drawn(cells)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["64", "128", "256"]
    assert list(axes.get_xticks()) == [0.08, 0.5, 0.92]


def test_ticks_that_would_touch_are_left_out(make_cell):
    cells = [make_cell("restkv", budget, 0.5) for budget in (32, 1000, 1024)]
    assert [label.get_text() for label in drawn(cells).get_xticklabels()] == ["32", "1000"]


def test_each_interval_is_a_stroke(cells):
    strokes = [len(lines.get_segments()) for lines in drawn(cells).collections[:2]]
    assert strokes == [3, 3]
    [low, high] = drawn(cells).collections[0].get_segments()[0]
    assert (low[1], high[1]) == pytest.approx((0.7, 0.9))


def test_a_perplexity_that_has_no_end_is_left_out(make_cell):
    cells = [
        make_cell("restkv", 64, math.inf, estimate=Estimate(math.inf, None)),
        make_cell("restkv", 128, 9.0, larger_is_better=False),
    ]
    assert [len(line.get_xdata()) for line in drawn(cells).lines][:1] == [1]


def test_perplexities_far_apart_have_a_logarithmic_axis(make_cell):
    cells = [make_cell("restkv", b, v, larger_is_better=False) for b, v in ((64, 900.0), (128, 9))]
    assert drawn(cells).get_yscale() == "log"
    assert drawn([*cells[1:], make_cell("snapkv", 64, 12)]).get_yscale() == "linear"


def test_without_a_recipe_there_is_no_picture(make_cell):
    assert drawn([make_cell("full", None, 1.0)]) is None


def test_positions_and_shares_stand_side_by_side(make_cell):
    axes = drawn([make_cell("restkv", 64, 0.5), make_cell("restkv", 0.25, 0.5, nbytes=1.0)])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["64", "25 %"]


def test_many_recipes_are_all_named_and_no_two_names_touch(make_cell):
    cells = [make_cell(f"recipe{number}", 64, 0.5) for number in range(22)]
    texts = drawn(cells).texts
    heights = sorted(text.get_position()[1] for text in texts)
    assert len({text.get_text() for text in texts}) == 22
    room = drawn(cells).figure.bbox.height
    assert min(b - a for a, b in pairwise(heights)) * room > 11

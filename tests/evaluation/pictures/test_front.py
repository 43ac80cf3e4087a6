"""A point for each recipe and budget, and a line through those that nothing beats."""

from __future__ import annotations

from kvpolicy.evaluation.pictures.front import front_picture
from kvpolicy.evaluation.pictures.marks import marks
from kvpolicy.evaluation.reports.costs import COSTS

BYTES = COSTS[0]


def drawn(cells):
    return front_picture(cells, BYTES, marks(cell.entrant for cell in cells))


def test_the_line_joins_what_nothing_beats(cells):
    [axes] = drawn(cells).axes
    lines = [line for line in axes.lines if line.get_linestyle() != "None"]
    assert [list(line.get_xdata()) for line in lines] == [[64 * 1024, 512 * 1024]]
    assert [list(line.get_ydata()) for line in lines] == [[0.8, 0.9]]


def test_what_is_beaten_is_pale(cells):
    [axes] = drawn(cells).axes
    pale = [line for line in axes.lines if line.get_alpha() is not None]
    assert len(pale) == 5


def test_the_axis_says_what_it_shows(cells):
    [axes] = drawn(cells).axes
    assert axes.get_xlabel() == "bytes of the cache"
    assert axes.xaxis.get_major_formatter()(2048) == "2 KiB"


def test_a_single_point_is_no_picture(make_cell):
    assert drawn([make_cell("restkv", 64, 0.5)]) is None

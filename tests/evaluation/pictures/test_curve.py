"""A line for each recipe over the positions of a text."""

from __future__ import annotations

import math

import attrs

from kvpolicy.evaluation.pictures.curve import curve_picture
from kvpolicy.evaluation.pictures.marks import marks
from kvpolicy.evaluation.reports.curves import Curve

FULL = Curve(entrant="full", budget=None, ends=(64, 128), values=(9.0, 8.0), in_tokens=True)
RESTKV = attrs.evolve(FULL, entrant="restkv", budget=8, values=(9.0, math.inf))


def drawn(*curves):
    figure = curve_picture(curves, marks(["restkv"]))
    return None if figure is None else figure.axes[0]


def test_every_curve_is_a_named_line():
    axes = drawn(FULL, attrs.evolve(RESTKV, values=(9.0, 8.5)))
    assert [text.get_text() for text in axes.texts] == ["full", "restkv"]
    assert [list(line.get_ydata()) for line in axes.lines[:2]] == [[9, 8], [9, 8.5]]


def test_the_axis_says_whether_it_counts_tokens():
    assert drawn(FULL).get_xlabel() == "position in tokens"
    shares = attrs.evolve(FULL, ends=(0.5, 1.0), in_tokens=False)
    axes = drawn(shares)
    assert axes.get_xlabel() == "position, as a share of the text"
    assert axes.xaxis.get_major_formatter()(0.5) == "50 %"


def test_what_has_no_two_finite_points_is_left_out():
    assert [text.get_text() for text in drawn(FULL, RESTKV).texts] == ["full"]
    assert drawn(RESTKV) is None
    assert drawn() is None

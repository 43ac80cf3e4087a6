"""A map for each recipe."""

from __future__ import annotations

import math

from kvpolicy.evaluation.pictures.heat import heat_picture
from kvpolicy.evaluation.reports.grids import Grid


def grid(entrant, scores):
    return Grid(
        task="t", entrant=entrant, budget=64, lengths=(100, 200), depths=(0, 100), scores=scores
    )


def test_each_map_has_its_title_and_its_scores():
    figure = heat_picture(
        [grid("restkv", ((1.0, 0.5), (0.0, None))), grid("snapkv", ((1, 1),) * 2)]
    )
    first, second = figure.axes
    assert first.get_title(loc="left") == "restkv at 64: mean 50 %"
    assert second.get_title(loc="left") == "snapkv at 64: mean 100 %"
    shown = first.images[0].get_array().filled(math.nan).tolist()
    assert shown[0] == [1.0, 0.5]
    assert math.isnan(shown[1][1])


def test_places_without_a_map_are_empty():
    figure = heat_picture([grid(str(number), ((1, 1),) * 2) for number in range(4)])
    assert [axes.axison for axes in figure.axes] == [True] * 4 + [False] * 2

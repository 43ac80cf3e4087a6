"""Tables of scores by length and depth."""

from __future__ import annotations

from kvpolicy.evaluation.reports.grids import Grid
from kvpolicy.evaluation.reports.heats import heats


def grid(entrant, budget, score=0.75, lengths=(1000, 2000)):
    return Grid(
        task="t",
        entrant=entrant,
        budget=budget,
        lengths=tuple(lengths),
        depths=(0,),
        scores=((score,) * len(lengths),),
    )


def test_budgets_are_groups_and_the_full_cache_comes_first():
    groups = heats([grid("full", None), grid("a", 64), grid("a", 8), grid("b", 0.5)])
    assert [group["title"] for group in groups] == [", at 8", ", at 64", ", at 50 %"]
    assert [heat["title"] for heat in groups[0]["heats"]] == ["full: mean 75", "a at 8: mean 75"]


def test_a_place_has_a_number_and_not_only_a_shade():
    [group] = heats([grid("full", None, 0.75)])
    [heat] = group["heats"]
    assert heat["lengths"] == ["1k", "2k"]
    assert heat["lines"] == [(0, [{"share": 0.75, "text": "75"}] * 2)]


def test_a_place_without_a_score_says_so():
    [group] = heats([grid("full", None, None)])
    assert group["heats"][0]["lines"][0][1][0]["text"] == "-"
    assert group["heats"][0]["title"] == "full: mean -"


def test_many_lengths_are_averaged_and_that_is_said():
    [group] = heats([grid("full", None, lengths=range(1, 101))])
    assert len(group["heats"][0]["lengths"]) <= 16
    assert "Of 100 lengths, neighbours are averaged" in group["narrowed"]

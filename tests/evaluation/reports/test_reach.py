"""Which budget and how many bytes each recipe needs for nearly the full cache's score."""

from __future__ import annotations

import math

import pytest

from kvpolicy.evaluation.reports.markdown import markdown
from kvpolicy.evaluation.reports.reach import reaches, table
from kvpolicy.evaluation.reports.summary import summary


@pytest.fixture
def cells(make_row):
    """Return the cells of scores by entrant, budget and bytes, beside a full cache of 4,096."""

    def cells(scores, *, full=1.0, **fields):
        rows = [make_row("1", score=full, **fields)]
        rows += [
            make_row("1", entrant, budget, score, nbytes=nbytes, **fields)
            for (entrant, budget, nbytes), score in scores.items()
        ]
        return summary(rows)

    return cells


def test_the_smallest_budget_from_which_on_all_are_enough_counts(cells):
    scores = {("snapkv", 32, 256): 0.96, ("snapkv", 64, 512): 0.9, ("snapkv", 128, 1024): 0.95}
    (found,) = reaches(cells(scores))
    assert (found.budget, found.nbytes, found.share) == (128, 1024, 0.25)
    assert found.text == "128: 1.0 KiB (25 %)"


def test_shares_and_positions_are_ordered_by_their_bytes(cells):
    scores = {("snapkv", 0.5, 2048): 1.0, ("snapkv", 256, 1024): 1.0, ("snapkv", 0.1, 512): 0.0}
    (found,) = reaches(cells(scores))
    assert found.budget == 256


@pytest.mark.parametrize("nbytes", [None, 4096])
def test_without_different_bytes_budgets_are_ordered_by_their_numbers(cells, nbytes):
    scores = {("snapkv", 64, nbytes): 0.5, ("snapkv", 128, nbytes): 1.0}
    scores |= {("snapkv", 1024, nbytes): 1.0}
    (found,) = reaches(cells(scores))
    assert found.budget == 128


def test_who_has_no_bytes_does_not_come_first(cells):
    scores = {("a", 64, None): 1.0, ("b", 64, 512): 1.0}
    _, lines = table(reaches(cells(scores)))
    assert [name for name, *_ in lines] == ["b", "a"]


def test_who_never_has_enough_comes_last_and_says_so(cells):
    scores = {("a", 64, 512): 0.5, ("b", 64, 512): 1.0}
    assert table(reaches(cells(scores))) == (
        ["policy", "needles"],
        [["b", "64: 512 B (12 %)"], ["a", "none"]],
    )


def test_a_perplexity_may_be_larger_by_the_same_share(cells):
    # The score of a text that is read is its loss: the logarithm of its perplexity.
    scores = {("a", 64, 512): math.log(10.5), ("b", 64, 512): math.log(10.6)}
    needed = reaches(cells(scores, full=math.log(10), asks="stream"))
    found = {each.entrant: each.budget for each in needed}
    assert found == {"a": 64, "b": None}


@pytest.mark.parametrize("full", [None, 0.0, -1.0])
def test_without_a_score_of_the_full_cache_nothing_is_said(cells, full):
    assert reaches(cells({("a", 64, 512): 1.0}, full=full)) == []


def test_a_recipe_that_lacks_a_task_has_no_figure_there(rows, make_row):
    more = [make_row("1", task="b"), make_row("1", "restkv", 64, task="b")]
    headings, lines = table(reaches(summary([*rows, *more])))
    assert headings == ["policy", "needles", "b"]
    assert {name: texts for name, *texts in lines}["snapkv"] == ["none", "-"]


def test_the_tables_in_markdown_have_it(rows):
    text = markdown(summary(rows), baseline="full")
    assert "## Bytes at 95 % of the full cache's score" in text
    assert "| restkv | none |" in text

"""Rows of one task become a comparison: who stands where, and who refuses."""

from __future__ import annotations

import attrs
import pytest

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.reports.comparison import compared
from kvpolicy.evaluation.runs.entrant import entrants
from kvpolicy.evaluation.runs.row import Row


@pytest.fixture
def row():
    def build(entrant, budget, sample, score, **fields):
        return Row(
            key=f"{entrant}{budget}{sample}",
            task="needle",
            metric="exact_match",
            sample=sample,
            question="inside",
            entrant=entrant,
            budget=budget,
            score=score,
            tokens=100,
            positions=budget or 100,
            nbytes=10 * (budget or 100),
            token_seconds=0.002,
            **fields,
        )

    return build


@pytest.fixture
def rows(row):
    return [
        row(name, budget, sample, score)
        for name, budget, scores in (("full", None, (1, 1)), ("snapkv", 64, (1, 0)))
        for sample, score in zip("ab", scores, strict=True)
    ]


def test_the_full_cache_is_apart_from_the_recipes(rows):
    found = compared(rows, entrants(["snapkv"], [64]))
    assert (found.full.name, found.full.correct, found.full.budget) == ("full cache", 2, None)
    [standing] = found.standings
    assert (standing.name, standing.correct, standing.samples) == ("snapkv", 1, 2)
    assert (standing.accuracy, standing.milliseconds) == (0.5, 2.0)
    assert standing.interval.low < 0.5 < standing.interval.high
    assert found.share(standing) == 0.64
    assert (found.tokens, found.prompts) == (100, 2)


def test_what_is_always_kept_is_that_of_each_budget(row, rows):
    more = [row("h2o", budget, "a", 1) for budget in (40, 256)]
    given = entrants(["snapkv", "h2o"], [40, 64, 256])
    found = compared([*rows, *more], given)
    assert [(each.name, each.protected) for each in found.standings] == [
        ("snapkv", 32),
        ("h2o", 20),
        ("h2o", 128),
    ]


def test_an_entrant_that_failed_is_a_refusal_with_its_reason(row, rows):
    broken = [row("h2o", 64, "a", 1), row("h2o", 64, "b", None, error="KeyError: 'b'")]
    found = compared([*rows, *broken], entrants(["snapkv", "h2o"], [64]))
    assert [each.name for each in found.standings] == ["snapkv"]
    [refusal] = found.refusals
    assert attrs.astuple(refusal) == ("h2o", 64, "KeyError: 'b'")
    assert found.names == ("h2o", "snapkv")


def test_a_full_cache_that_failed_leaves_nothing_to_compare(row):
    rows = [row("full", None, "a", None, error="too long"), row("snapkv", 64, "a", 1)]
    with pytest.raises(InvalidValueError, match=r"the full cache failed, .* too long"):
        compared(rows, entrants(["snapkv"], [64]))


def test_recipes_that_all_failed_are_no_comparison(row):
    rows = [row("full", None, "a", 1), row("snapkv", 64, "a", None, error="too small.")]
    with pytest.raises(InvalidValueError, match=r"no recipe could be compared\. too small\."):
        compared(rows, entrants(["snapkv"], [64]))


def test_the_telling_budget_is_where_best_and_worst_are_furthest_apart(made_up):
    comparison = made_up(20, a={10: 1, 20: 18, 40: 19}, b={10: 0, 20: 1, 40: 2})
    assert comparison.telling_budget == 20
    assert [each.name for each in comparison.at(20)] == ["a", "b"]
    assert list(comparison.of("b")) == [10, 20, 40]


def test_the_data_is_plain_and_complete(comparison):
    data = comparison.to_dict()
    assert [row["name"] for row in data["rows"]] == ["full cache", "restkv"] + 2 * ["streamingllm"]
    assert data["rows"][0]["interval"] == list(comparison.full.interval)
    assert data["refusals"] == [attrs.asdict(refusal) for refusal in comparison.refusals]

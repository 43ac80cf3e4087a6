"""Prompts that are read together have the answers, positions and entries that each has alone."""

from __future__ import annotations

from collections import Counter

import attrs
import pytest

from kvpolicy.discovery.registry import installed
from kvpolicy.evaluation.measures.catalogue import METRICS
from kvpolicy.evaluation.recording.read_once import ReadOnce
from kvpolicy.evaluation.runs.batch import answered_together
from kvpolicy.evaluation.runs.prompt import PromptFormat
from kvpolicy.evaluation.runs.results import Results
from kvpolicy.task import Metric

RECIPES = [each.name for each in installed("recipe")]
DIFFER = {"first_seconds": None, "token_seconds": None, "nbytes": None, "together": 1}
"""What is known of a prompt that is read alone only, or said of a batch only."""


@pytest.fixture(params=["inside", "outside"])
def question(request):
    return request.param


def rows(grid):
    return [attrs.evolve(row, **DIFFER) for row in grid.run(Results())]


def test_rows_are_those_of_each_prompt_alone(make, question):
    recipes = {"recipes": RECIPES, "budgets": (40,), "question": question}
    together = make(**recipes, batch=3).run(Results())
    assert [attrs.evolve(row, **DIFFER) for row in together] == rows(make(**recipes))
    # None was read alone because reading together failed.
    sizes = [row.together for row in together if not row.failed]
    assert Counter(sizes) == {3: 3 * len(sizes) // 4, 1: len(sizes) // 4}


def test_a_row_says_how_many_were_read_together_and_takes_its_share(make):
    together = make(recipes=["snapkv"], budgets=(40,), batch=4).run(Results())
    alone = make(recipes=["snapkv"], budgets=(40,)).run(Results())
    assert {row.together for row in together} == {4}
    assert {row.first_seconds for row in together} == {None}
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.nbytes == pytest.approx(theirs.nbytes, rel=0.1)


def test_a_batch_is_what_has_no_row_yet(make, samples):
    results = Results()
    make(recipes=["snapkv"], budgets=(40,)).run(results)
    first = dict(results.rows)
    found = make(recipes=["snapkv", "restkv"], budgets=(40,), batch=4).run(results)
    assert [row.together for row in found if row.entrant == "restkv"] == [4] * len(samples)
    assert all(row is first[row.key] for row in found if row.entrant != "restkv")


def test_prompts_of_other_lengths_and_errors_stay_alone(make, samples):
    longer = attrs.evolve(samples[1], name="longer", context="the " + samples[1].context)
    task = attrs.evolve(make().tasks[0], samples=[samples[0], samples[2], longer, samples[3]])
    found = make(recipes=["snapkv"], budgets=(40, 8), batch=4, tasks=[task]).run(Results())
    sizes = {row.sample: row.together for row in found if row.budget == 40}
    assert list(sizes.values()) == [2, 2, 1, 1]
    refused = [row for row in found if row.budget == 8]
    assert len(refused) == 4
    assert all("smaller than" in row.error for row in refused)


def test_a_metric_that_fails_for_one_is_the_error_of_that_one(make, samples):
    def judge(text, sample):
        if sample.name == "2":
            raise ValueError("no score for this one")
        return 1.0

    task = attrs.evolve(make().tasks[0], metric=Metric(name="own", judge=judge))
    found = make(recipes=[], budgets=(), batch=4, tasks=[task]).run(Results())
    assert [row.error for row in found] == [None, None, "ValueError: no score for this one", None]


@pytest.mark.parametrize("least", [0, 3])
def test_each_text_ends_by_itself(needle_pair, samples, least):
    model, tokenizer = needle_pair
    given = [
        attrs.evolve(each, max_new_tokens=limit, min_new_tokens=least)
        for each, limit in zip(samples, (4, 5, 6, 7), strict=True)
    ]
    style = PromptFormat(tokenizer=tokenizer)
    asked = [(style.prompt(each), each) for each in given]
    found = answered_together(ReadOnce(model), tokenizer, asked, METRICS["exact_match"], None)
    assert all(
        least <= row["new_tokens"] <= each.max_new_tokens
        for row, each in zip(found, given, strict=True)
    )

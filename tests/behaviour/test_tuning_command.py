"""`python -m kvpolicy.evaluation.tuning` prints a table for each place of the question."""

import pytest

import kvpolicy
from kvpolicy.evaluation import needle
from kvpolicy.evaluation.tuning.__main__ import RECIPES, main, rows


def test_a_table_for_each_place_of_the_question_is_printed(capsys):
    pytest.importorskip("optuna")
    main(prompts=4, tokens=96, facts=4, budget=48, trials=2)
    printed = capsys.readouterr().out
    assert printed.count("2 trials on 2 prompts; 2 others were held out") == 2
    for name in ("tuned", *RECIPES):
        assert printed.count(f"\n| {name} | ") == 2


def test_the_needle_model_answers_the_prompts():
    found = kvpolicy.evaluate(
        *needle.load(), recipes=[], data=rows(2, 128, 4), metric="contains", max_new_tokens=3
    )
    [full] = found.cells
    assert full.estimate.value == 1

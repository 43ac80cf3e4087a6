"""The table compares everyone prompt by prompt."""

import attrs

from kvpolicy.evaluation.beds.answers import Answered
from kvpolicy.evaluation.beds.measurement import Measured
from kvpolicy.evaluation.beds.table import table


def row(name, *errors, budget=64, bed="one"):
    return Measured(bed=bed, name=name, budget=budget, errors=errors)


def test_a_cell_has_the_error_and_the_paired_difference():
    text = table([row("restkv", 0.5, 0.25), row("replay", 0.25, 0.125)])
    assert "## one (2 prompts)" in text
    assert "| restkv | 0.375 ± 0.125 |" in text
    assert "| replay | 0.188 ± 0.062; -0.188 ± 0.062 |" in text


def test_budgets_are_columns_and_beds_are_tables():
    rows = [row("restkv", 0.5, 0.5), row("restkv", 0.25, 0.25, budget=32)]
    text = table([*rows, row("snapkv", 0.75, 0.25, bed="two")])
    assert "| policy | 32 positions | 64 positions |" in text
    assert "| restkv | 0.250 ± 0.000 | 0.500 ± 0.000 |" in text
    assert "| snapkv | 0.500 ± 0.250 |" in text


def test_a_page_of_another_model_names_it():
    text = table([row("restkv", 0.5, 0.25)], "smollm2", options="--model=smollm2")
    assert text.startswith("# Policies of equal budget on smollm2\n")
    assert "    python -m kvpolicy.evaluation.beds --model=smollm2\n" in text


def test_right_answers_stand_behind_the_errors():
    answers = (Answered(errors=(0.5, 0.25), right=(True, False), held=64, nbytes=1),)
    rows = [attrs.evolve(row("restkv", 0.5, 0.25), answers=answers)]
    text = table(rows, note="A note.")
    assert text.startswith("# Policies of equal budget on the needle model\n")
    assert "\nA note.\n" in text
    assert "| restkv | 0.375 ± 0.125; 50% |" in text


def test_a_refused_budget_is_a_cell_and_says_why():
    why = attrs.evolve(row("momentkv"), refusal="budget 64 is smaller than 65.")
    text = table([row("restkv", 0.5, 0.25), why, row("snapkv", 0.5, 0.5)])
    assert "| momentkv | refused |" in text
    assert "| snapkv | 0.500 ± 0.000; +0.125 ± 0.125 |" in text
    assert text.endswith("\n\nmomentkv at 64: budget 64 is smaller than 65.")

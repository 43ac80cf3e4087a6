"""The table of replayed queries compares everyone prompt by prompt."""

from pathlib import Path

import attrs
import pytest

from kvpolicy.evaluation.answers import Answered
from kvpolicy.evaluation.replays import Measured, main, measured, table
from kvpolicy.evaluation.targets import needle_beds

EXAMPLE = Path(__file__).parents[2] / "examples" / "needle-model"


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
    assert text.startswith("# Replayed queries, smollm2\n")
    assert "    python -m kvpolicy.evaluation.replays --model=smollm2\n" in text


def test_replayed_queries_lower_the_errors_of_the_needle_model():
    """The question is visible; the difference is many standard errors in docs/results."""
    bed = next(needle_beds(2))
    base, mine = (measured(bed, name, 64) for name in ("restkv", "replay"))
    assert bed.name == base.bed == "needle, visible"
    assert all(less < more for less, more in zip(mine.errors, base.errors, strict=True))


def test_right_answers_stand_behind_the_errors():
    answers = (Answered(errors=(0.5, 0.25), right=(True, False), held=64, nbytes=1),)
    rows = [attrs.evolve(row("restkv", 0.5, 0.25), answers=answers)]
    text = table(rows, note="A note.")
    assert text.startswith("# Beds\n")
    assert "\nA note.\n" in text
    assert "| restkv | 0.375 ± 0.125; 50% |" in text


def test_the_command_prints_one_bed_if_asked(capsys):
    main(entrants="restkv;snapkv", budgets="64", prompts=2, only="needle, hidden")
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("## ")] == [
        "## needle, hidden (2 prompts)"
    ]
    assert "| snapkv | " in printed
    given = "'--bed=needle, hidden' --prompts=2 --budgets=64 '--entrants=restkv;snapkv'"
    assert f"kvpolicy.evaluation.replays {given}\n" in printed


def test_answers_are_counted_and_what_is_held_is_said_if_asked(capsys):
    main(entrants="restkv;tova", budgets="64", prompts=2, only="needle, visible", answers=True)
    printed = capsys.readouterr().out
    assert "--entrants=restkv;tova' --answers\n" in printed
    assert "right answers are needle, visible: 100%" in printed
    assert "holds 100.0% to 100.0% of its budget" in printed


@pytest.mark.parametrize("variant", ["redundant", "chained"])
def test_another_needle_model_is_found_by_its_folder(variant, capsys):
    main(model=str(EXAMPLE / variant), entrants="restkv", budgets="40", prompts=2)
    printed = capsys.readouterr().out
    assert f"## {variant}, visible (2 prompts)" in printed
    assert f"## {variant}, hidden (2 prompts)" in printed

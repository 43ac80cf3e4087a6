"""The command prints the beds that are asked for."""

from pathlib import Path

import pytest
import typer

from kvpolicy.evaluation.beds.__main__ import main
from kvpolicy.evaluation.beds.prompts import needle_beds

EXAMPLE = Path(__file__).parents[2] / "examples" / "needle-model"


def test_the_command_prints_one_bed_if_asked(capsys):
    main(entrants="restkv;snapkv", budgets="64", prompts=2, only="needle, hidden")
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("## ")] == [
        "## needle, hidden (2 prompts)"
    ]
    assert "| snapkv | " in printed
    given = "'--bed=needle, hidden' --prompts=2 --budgets=64 '--entrants=restkv;snapkv'"
    assert f"kvpolicy.evaluation.beds {given}\n" in printed


def test_answers_are_counted_and_what_is_held_is_said_if_asked(capsys):
    main(entrants="restkv;tova", budgets="64", prompts=2, only="needle, visible", answers=True)
    printed = capsys.readouterr().out
    assert "--entrants=restkv;tova' --answers\n" in printed
    assert "right answers are needle, visible: 100%" in printed
    assert "holds 100.0% to 100.0% of its budget" in printed


def test_the_length_of_stretches_is_part_of_the_command(capsys, monkeypatch):
    asked = []

    def stretches(model, prompts, length):
        asked.append(length)
        return needle_beds(prompts)

    monkeypatch.setattr("kvpolicy.evaluation.beds.__main__.beds", stretches)
    main(model="smollm2", entrants="restkv", budgets="64", prompts=2, length=2048)
    assert asked == [2048]
    assert "--model=smollm2 --prompts=2 --budgets=64 --length=2048 " in capsys.readouterr().out


@pytest.mark.parametrize("variant", ["redundant", "chained"])
def test_another_needle_model_is_found_by_its_folder(variant, capsys):
    main(model=str(EXAMPLE / variant), entrants="restkv", budgets="40", prompts=2)
    printed = capsys.readouterr().out
    assert f"## {variant}, visible (2 prompts)" in printed
    assert f"## {variant}, hidden (2 prompts)" in printed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"entrants": "restvk"}, "no entrant 'restvk'. Did you mean 'restkv'"),
        ({"budgets": "40,x"}, "but not 'x'"),
        ({"budgets": "0"}, "1 or more, but not '0'"),
        ({"only": "prose"}, "no bed 'prose'. Beds: needle, visible; needle, hidden"),
    ],
)
def test_what_is_not_there_is_named(given, message):
    with pytest.raises(typer.BadParameter) as caught:
        main(prompts=2, **given)
    assert message in str(caught.value)

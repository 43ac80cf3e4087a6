"""Error targets: what is found on later queries, and the tables that say it."""

import json
from pathlib import Path

import attrs
import pytest

from kvpolicy.evaluation import targets
from kvpolicy.evaluation.beds.bed import Bed
from kvpolicy.evaluation.beds.prompts import needle_beds
from kvpolicy.evaluation.targets import Found, found, main, table

EXAMPLE = Path(__file__).parents[2] / "examples" / "needle-model"


@pytest.fixture(scope="module")
def bed():
    """Prompts whose question is visible."""
    return next(needle_beds(2))


def test_a_smaller_target_keeps_more_and_errs_less(bed):
    strict, loose = (found(bed, "snapkv", target) for target in (0.05, 0.3))
    assert strict.kept > loose.kept
    assert all(less < more for less, more in zip(strict.errors, loose.errors, strict=True))
    assert all(mean <= worst for mean, worst in zip(loose.errors, loose.worst, strict=True))
    assert 0 <= loose.within <= 1


def of_a_bed(bed, name, target):
    """Return what might be found."""
    errors = (0.1, 0.3)
    return Found(bed=bed.name, recipe=name, target=target, errors=errors, worst=errors, kept=0.25,
                 within=0.5)  # fmt: skip


def test_a_line_has_means_with_standard_errors_and_shares():
    bed = Bed(name="one", model=None, recordings=())
    row = attrs.evolve(of_a_bed(bed, "snapkv", 0.1), worst=(0.2, 0.4))
    text = table([row], "--prompts=2")
    assert "    python -m kvpolicy.evaluation.targets --prompts=2\n" in text
    assert "## one (2 prompts)" in text
    assert "| snapkv | 0.1 | 0.200 ± 0.100 | 0.300 ± 0.100 | 50% | 25.0% |" in text


def test_the_command_takes_several_models(monkeypatch, capsys):
    monkeypatch.setattr(targets, "found", of_a_bed)
    chained = str(EXAMPLE / "chained")
    main(model=["needle", chained], recipes="snapkv", targets="0.2", prompts=2)
    printed = capsys.readouterr().out
    titles = [line for line in printed.splitlines() if line.startswith("## ")]
    assert titles == [
        f"## {name}, {place} (2 prompts)"
        for name in ("needle", "chained")
        for place in ("visible", "hidden")
    ]
    assert f"--model=needle --model={chained} --recipes=snapkv --targets=0.2 " in printed


def test_rows_can_be_had_as_json(monkeypatch, capsys):
    monkeypatch.setattr(targets, "found", of_a_bed)
    main(recipes="snapkv", targets="0.2", prompts=2, as_json=True)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["bed"] for row in rows] == ["needle, visible", "needle, hidden"]

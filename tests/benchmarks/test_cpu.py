"""The CPU benchmark runs, answers every target, and tells no speed of what is red."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.cpu import checks
from benchmarks.cpu.growth import growth
from benchmarks.cpu.sheet import Sheet, verdict
from benchmarks.cpu.targets import TARGETS
from benchmarks.cpu.timing import Times
from benchmarks.rows import read

ROOT = Path(__file__).parents[2]
TOY = ("benchmarks/cpu", "--toy", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    """All of `make bench` at sizes that take seconds: what it printed, and its rows."""
    path = tmp_path_factory.mktemp("rows") / "cpu.jsonl"
    path.write_text("what an earlier run left\n")
    found = subprocess.run(
        [sys.executable, "-m", "pytest", *TOY, "--rows", str(path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTEST_XDIST_WORKER": ""},
    )  # fmt: skip
    assert found.returncode == 0, found.stdout
    return found.stdout, read(path)


def test_a_toy_run_prints_the_targets(toy_run):
    printed, _ = toy_run
    assert "CPU targets" in printed
    assert "time of a decode step: snapkv against StaticCache" in printed


def test_a_toy_run_measures_all_that_targets_are_set_on(toy_run):
    _, rows = toy_run
    told = {(row.name, row.variant, row.against, row.unit) for row in rows}
    held = {"1,024 held, one layer": "32 held, one layer", "32,768 held": "128 held"}
    wanted = {
        (each.name, held.get(each.variant, each.variant), held.get(each.against, each.against),
         each.unit)
        for each in TARGETS
        if each.unit in ("ratio", "s")
    }  # fmt: skip
    assert wanted <= told


def test_rows_say_on_what_they_were_measured(toy_run):
    _, rows = toy_run
    assert all(row.device == "cpu" and row.machine.endswith(", 1 thread") for row in rows)
    assert all("torch" in row.versions for row in rows)
    assert not any(str(ROOT) in row.to_json() for row in rows)


def test_an_operation_whose_check_is_red_is_told_without_a_number():
    def op_is_right():
        raise AssertionError("it is not")

    sheet = Sheet()
    with pytest.raises(pytest.fail.Exception, match="no speed is told, because op_is_right"):
        sheet.require("cpu.layer", "time", op_is_right)
    (row,) = sheet.rows
    assert row.value is None
    assert row.failure == "red: AssertionError: it is not"


def test_a_check_runs_once_for_what_it_is_given():
    runs = []
    sheet = Sheet()
    for recipe in ("h2o", "h2o", "tova"):
        sheet.require("cpu.decode", "time", runs.append, recipe)
    assert runs == ["h2o", "tova"]
    assert sheet.rows == []


@pytest.mark.parametrize(
    "check", [checks.restkv_keeps_what_the_authors_keep, checks.snapkv_keeps_what_kvpress_keeps]
)
def test_a_check_is_red_if_other_positions_are_kept(check, monkeypatch):
    with torch.no_grad():
        assert verdict(check) is None
        select = checks.Policy.select

        def wrong(policy, observation):
            selection = select(policy, observation)
            selection.indices[0, 0, 0] += 1
            return selection

        monkeypatch.setattr(checks.Policy, "select", wrong)
        assert "keeps other positions" in verdict(check)


def test_decoding_is_red_if_logits_differ(monkeypatch):
    monkeypatch.setattr(checks, "one_prompt", lambda *_: float("nan"))
    assert "logits differ by nan" in verdict(checks.decoding_is_exact, "snapkv")


def test_of_several_rounds_the_fastest_counts_and_the_middle_is_kept():
    sheet = Sheet()
    sheet.note("cpu.layer", "time", Times((3.0, 1.0, 2.0)), "s")
    (row,) = sheet.rows
    assert (row.value, row.min_seconds, row.median_seconds, row.repeats) == (1.0, 1.0, 2.0, 3)


def test_quadratic_growth_is_seen_as_such():
    found = growth({size: 1e-9 * size**2 for size in (1024, 2048, 4096, 8192)})
    assert found.exponent.slope == pytest.approx(2)
    assert found.exponent.r_squared == pytest.approx(1)
    assert found.line.r_squared < 0.99

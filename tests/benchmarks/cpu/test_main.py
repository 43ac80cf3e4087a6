"""The CPU benchmark runs, answers every target, and gives no number to what fails its check."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import checks
from benchmarks.cpu import __main__ as program
from benchmarks.cpu import plan
from benchmarks.cpu.scale import FULL, TOY
from benchmarks.cpu.targets import TARGETS
from benchmarks.rows import read

# What a module needs is made once, not by every worker.
pytestmark = pytest.mark.xdist_group("cpu_benchmark")

ROOT = Path(__file__).parents[3]


def run(*options):
    app = typer.Typer()
    app.command()(program.main)
    return CliRunner().invoke(app, ["--toy", *map(str, options)], catch_exceptions=False)


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    """All of `make bench` at toy sizes: what it printed, and its rows."""
    path = tmp_path_factory.mktemp("rows") / "cpu.jsonl"
    path.write_text("what an earlier run left\n")
    result = run("--output", path)
    assert result.exit_code == 0, result.output
    return result.output, read(path)


def test_a_toy_run_prints_the_targets(toy_run):
    printed, _ = toy_run
    assert "CPU targets" in printed
    assert "time of a decode step: snapkv against StaticCache" in printed


def test_a_toy_run_measures_all_that_targets_are_set_on(toy_run):
    _, rows = toy_run
    assert not any(row.failure for row in rows)
    measured = {(row.name, row.variant, row.against, row.unit) for row in rows}
    held = {"1,024 held, one layer": "32 held, one layer", "32,768 held": "128 held"}
    wanted = {
        (each.name, held.get(each.variant, each.variant), held.get(each.against, each.against),
         each.unit)
        for each in TARGETS
        if each.unit in ("ratio", "s")
    }  # fmt: skip
    assert wanted <= measured


def test_every_shape_of_a_target_is_measured_at_full_size():
    shapes = {case.positions for case, _ in FULL.against_authors}
    shapes |= {FULL.against_kvpress.positions, FULL.long.positions}
    assert {target.shape["S"] for target in TARGETS if target.shape} <= shapes


def test_rows_say_on_what_they_were_measured(toy_run):
    _, rows = toy_run
    assert all(row.device == "cpu" and row.machine.endswith(", 1 thread") for row in rows)
    assert all("torch" in row.versions for row in rows)
    assert not any(str(ROOT) in row.to_json() for row in rows)


def test_uneven_heads_are_uneven(toy_run):
    _, rows = toy_run
    spreads = [row.settings for row in rows if row.variant == "uneven heads"]
    assert spreads
    for spread in spreads:
        assert spread["shortest head"] < spread["longest head"]


def test_what_fails_its_check_gets_no_number(tmp_path, monkeypatch):
    def fails():
        raise AssertionError("other positions")

    monkeypatch.setitem(checks.CHECKS, "snapkv", fails)
    result = run("--output", tmp_path / "rows.jsonl", "--only", "layer/snapkv")
    assert result.exit_code == 1
    reason = "red: snapkv failed its check: AssertionError: other positions"
    rows = [row for row in read(tmp_path / "rows.jsonl") if row.benchmark == "cpu.layer"]
    ours = [row for row in rows if row.variant == "snapkv"]
    assert {(row.value, row.failure) for row in ours} == {(None, reason)}
    assert all(row.value is not None for row in rows if row.variant == "kvpress")
    assert f"no number: {reason}" in result.output


def test_the_plan_names_every_cell_once():
    for scale in (FULL, TOY):
        keys = [cell.key for cell in plan.cells(scale)]
        assert len(keys) == len(set(keys))

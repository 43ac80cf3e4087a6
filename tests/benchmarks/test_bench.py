"""A bench notes every row in its file, and gives no number to what failed its check."""

import pytest
import torch

from benchmarks import bench, rows
from benchmarks.bench import Bench, Cell
from benchmarks.timing import Timing


@pytest.fixture
def made(tmp_path):
    return Bench(
        program="cpu",
        device=torch.device("cpu"),
        scale=None,
        path=tmp_path / "rows.jsonl",
        dtype=torch.float32,
        shape={"H": 8},
    )


def test_a_row_says_what_it_was_measured_with(made):
    made.note("layer", "time", 1.5, "s", shape={"S": 4}, dtype=torch.bfloat16, variant="restkv")
    (row,) = rows.read(made.path)
    assert (row.benchmark, row.name, row.variant, row.value) == ("cpu.layer", "time", "restkv", 1.5)
    assert (row.device, row.dtype, row.shape) == ("cpu", "bfloat16", {"H": 8, "S": 4})
    assert row.versions == rows.versions()


@pytest.mark.parametrize(("of", "value"), [("median", 2.0), ("minimum", 1.0)])
def test_a_timing_has_all_its_numbers(made, of, value):
    made.value_of = lambda timing: getattr(timing, of)
    made.note("layer", "time", Timing((3.0, 1.0, 2.0), (0.1, 0.1, 0.1)), "s")
    (row,) = made.known
    assert (row.value, row.min_seconds, row.median_seconds, row.repeats) == (value, 1.0, 2.0, 3)


def test_a_failed_timing_leaves_the_row_without_a_number(made):
    made.note("layer", "time", "out of memory: 3 GiB", "s")
    made.note("layer", "rate", 3.0, "GB/s", timing="failed: TypeError: wrong")
    assert [(row.value, row.failure) for row in made.known] == [
        (None, "out of memory: 3 GiB"),
        (None, "failed: TypeError: wrong"),
    ]


def test_what_failed_its_check_or_was_not_checked_is_red(made):
    made.note("checks", "select", True, "bool")
    made.note("checks", "gather_kv", True, "bool")
    made.note("checks", "gather_kv", False, "bool", note="AssertionError: other rows")

    assert made.red("select") is None
    red = "red: gather_kv failed its check: AssertionError: other rows"
    assert made.red("select", "gather_kv") == red
    assert made.red("pool_scores") == "red: pool_scores was not checked"


def test_a_red_row_has_a_reason_and_no_number(made):
    made.note("kernels", "select", 3.0, "s", failure="red: select failed its check")
    assert made.known[0].value is None
    assert rows.read(made.path) == made.known


def test_a_cell_that_fails_costs_its_own_rows(made):
    def fails(given):
        raise TypeError("wrong\nand more")

    cells = [
        Cell(key="layer/restkv/4096", measure=fails),
        Cell(key="layer/snapkv", measure=lambda given: given.note("layer", "time", 1.0, "s")),
    ]
    bench.run(made, cells)
    found = {(row.name, row.variant): row.failure for row in made.known if row.name != "cell"}
    assert found[("restkv", "4096")] == "failed: TypeError: wrong"
    assert found[("time", None)] is None
    times = [row for row in made.known if row.benchmark == "cpu.cell"]
    assert [row.name for row in times] == ["layer/restkv/4096", "layer/snapkv"]

"""A worker measures cell by cell, and stops when time is up."""

import time

import torch

from benchmarks.bench import Cell
from benchmarks.gpu import worker


def raising(error):
    def measure(bench):
        raise error

    return measure


def test_a_cell_that_fails_costs_one_row(bench):
    cells = [
        Cell(key="kernels/select/1", measure=raising(torch.OutOfMemoryError("no 3 GiB. More"))),
        Cell(key="kernels/select/2", measure=raising(TypeError("wrong"))),
        Cell(key="kernels/select/3", measure=lambda bench: bench.note("kernels", "x", 1.0, "s")),
    ]
    assert worker.run(bench, cells, bench.path.with_suffix(".progress"), time.time() + 60) == 0

    failures = [row.failure for row in bench.known if row.name in ("select", "x")]
    assert failures == ["out of memory: no 3 GiB", "failed: TypeError: wrong", None]


def test_no_cell_is_begun_without_time_for_it(bench):
    cell = Cell(key="kernels/select/1", measure=raising(AssertionError), seconds=100)
    worker.run(bench, [cell], bench.path.with_suffix(".progress"), time.time() + 50)

    assert [row.failure for row in bench.known] == ["no time left"]


def test_a_cell_that_was_begun_before_is_not_measured_again(bench):
    progress = bench.path.with_suffix(".progress")
    progress.write_text("kernels/select/1\n")
    cell = Cell(key="kernels/select/1", measure=raising(AssertionError))
    worker.run(bench, [cell], progress, time.time() + 60)

    assert bench.known == []

"""A worker that dies or hangs costs one cell; one that never starts ends the benchmark."""

import sys
import textwrap
import time

import pytest

from benchmarks.bench import Cell
from benchmarks.gpu import supervisor

WORKER = """
    import os, pathlib, signal, sys, time
    progress = pathlib.Path(sys.argv[sys.argv.index("--worker") + 1])
    begun = progress.read_text().split() if progress.exists() else []
    for key in {keys}:
        if key not in begun:
            progress.open("a").write(key + chr(10))
            if "crash" in key:
                os.kill(os.getpid(), signal.SIGKILL)
            if "hang" in key:
                time.sleep(600)
"""


def cell(key):
    return Cell(key=key, measure=lambda bench: None, seconds=0.0)


def test_a_worker_that_dies_or_hangs_costs_one_cell(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "GRACE", 1.5)
    keys = ["a/fine", "a/crash", "b/hang", "c/crash/4096", "d/fine"]
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER.format(keys=keys)))

    supervisor.run(bench, list(map(cell, keys)), [sys.executable, str(script)], time.time() + 60)

    failures = {(row.benchmark, row.name): row.failure for row in bench.known}
    assert failures[("gpu.a", "crash")] == failures[("gpu.c", "crash")] == "crashed: signal 9"
    assert failures[("gpu.b", "hang")].startswith("hung: stopped after")
    assert len(failures) == 3


def test_a_worker_that_never_starts_ends_the_benchmark(bench):
    with pytest.raises(SystemExit, match="the worker does not start"):
        supervisor.run(bench, [cell("a/fine")], [sys.executable, "-c", "1"], time.time() + 60)

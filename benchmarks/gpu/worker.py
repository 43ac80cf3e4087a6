"""Runs cells in this process, one after another, until one breaks the device or time is up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bench import Bench, Cell, measured, note_failure
from benchmarks.gpu.scale import Scale
from benchmarks.timing import release

NO_TIME = "no time left"
"""The failure of a cell that was not begun."""
BROKEN = 3
"""The exit code of a worker whose device does not answer any more."""


def run(bench: Bench[Scale], cells: Sequence[Cell[Scale]], progress: Path, deadline: float) -> int:
    """Run the cells that no worker has begun or measured; return the exit code."""
    begun = {*begun_cells(progress)}
    begun |= {row.name for row in bench.known if row.benchmark == "gpu.cell"}
    for cell in cells:
        if cell.key in begun:
            continue
        with progress.open("a") as file:
            file.write(cell.key + "\n")
        if time.time() + cell.seconds > deadline:
            note_failure(bench, cell, NO_TIME)
        elif not measured(bench, cell):
            return BROKEN
        release()
    return 0


def begun_cells(progress: Path) -> list[str]:
    """Return the keys of the cells that were begun, in order."""
    return progress.read_text().split() if progress.exists() else []

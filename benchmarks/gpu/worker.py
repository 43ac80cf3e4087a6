"""Run cells in this process, one after another, until one breaks the device or time is up."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu.bench import Bench, Cell
from benchmarks.gpu.timing import failure_of, release

BROKEN = 3
"""The exit code of a worker whose device does not answer any more."""


def run(bench: Bench, cells: Sequence[Cell], progress: Path, deadline: float) -> int:
    """Run the cells that were not begun before; return the exit code."""
    begun = begun_cells(progress)
    for cell in cells:
        if cell.key in begun:
            continue
        with progress.open("a") as file:
            file.write(cell.key + "\n")
        if time.time() + cell.seconds > deadline:
            note_failure(bench, cell, "no time left")
        elif not measured(bench, cell):
            return BROKEN
        release()
    return 0


def begun_cells(progress: Path) -> list[str]:
    """Return the keys of the cells that were begun, in order."""
    return progress.read_text().split() if progress.exists() else []


def measured(bench: Bench, cell: Cell) -> bool:
    """Measure a cell, and note why if that fails; return whether the device still answers."""
    started = time.perf_counter()
    failure = failure_of(lambda: cell.measure(bench))
    if failure:
        note_failure(bench, cell, failure)
    bench.note("cell", cell.key, time.perf_counter() - started, "s", failure=failure)
    return answers(bench.device)


def answers(device: torch.device) -> bool:
    """Whether the device still computes: after an illegal access it never does again."""
    try:
        return bool(torch.ones(2, device=device).sum() == 2)
    except RuntimeError:
        traceback.print_exc()
        return False


def note_failure(bench: Bench, cell: Cell, failure: str) -> None:
    """Write that a cell has no numbers, as a row of what it would have measured."""
    section, name, *rest = cell.key.split("/")
    bench.note(section, name, None, "", variant="/".join(rest) or None, failure=failure)

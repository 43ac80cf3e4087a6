"""Runs the benchmark in worker processes, so that a crash or a hang costs one cell."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bench import Bench, Cell, note_failure
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.worker import begun_cells

ROOT = Path(__file__).parents[2]
PATIENCE, GRACE = 4.0, 60.0
"""A cell hangs if it takes PATIENCE times its estimate and GRACE seconds more."""


def run(
    bench: Bench[Scale], cells: Sequence[Cell[Scale]], worker: list[str], deadline: float
) -> None:
    """Start workers until every cell was begun; note the cells that ended a worker.

    `worker` is the command line of one. The file for its progress is added to it.
    """
    progress = bench.path.with_suffix(".progress")
    progress.unlink(missing_ok=True)
    while len(begun_cells(progress)) < len(cells):
        before = len(begun_cells(progress))
        command = [*worker, "--worker", str(progress), "--deadline", str(deadline)]
        process = subprocess.Popen(command, cwd=ROOT)
        reason = _watched(process, cells, progress, deadline)
        begun = begun_cells(progress)
        if reason and begun:
            # A worker notes what Python can catch. This it cannot catch.
            broken = next(cell for cell in cells if cell.key == begun[-1])
            note_failure(bench, broken, reason)
        if len(begun) == before:
            raise SystemExit(f"the worker does not start: {reason or 'it ended at once'}")
    progress.unlink(missing_ok=True)


def _watched(
    process: subprocess.Popen[bytes], cells: Sequence[Cell[Scale]], progress: Path, deadline: float
) -> str | None:
    """Wait for a worker; if it died or hung, return why its last cell has no numbers."""
    patience = {cell.key: PATIENCE * cell.seconds + GRACE for cell in cells}
    seen, since = len(begun_cells(progress)), time.time()
    while process.poll() is None:
        begun = begun_cells(progress)
        if len(begun) > seen:
            seen, since = len(begun), time.time()
        allowed = patience[begun[-1]] if begun else 120.0
        if time.time() - since > allowed or time.time() > deadline + 30:
            process.kill()
            process.wait()
            return f"hung: stopped after {time.time() - since:.0f} s"
        time.sleep(0.2)
    if process.returncode < 0:
        return f"crashed: signal {-process.returncode}"
    return None

"""Run the benchmark in processes of its own: one that breaks the GPU, or hangs, costs one cell."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.bench import Bench, Cell
from benchmarks.gpu.worker import begun_cells, note_failure

ROOT = Path(__file__).parents[2]
PATIENCE, GRACE = 4.0, 60.0
"""So many times its estimate, and so many seconds more, may a cell take before it hangs."""


def run(bench: Bench, cells: Sequence[Cell], worker: list[str], deadline: float) -> None:
    """Start workers until every cell has been begun; note those that took a worker with them.

    `worker` is the command line of one; where it is to note its progress comes behind it.
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
            # The worker notes what Python can catch; this is what it cannot.
            broken = next(cell for cell in cells if cell.key == begun[-1])
            note_failure(bench, broken, reason)
        if len(begun) == before:
            raise SystemExit(f"the worker does not start: {reason or 'it ended at once'}")
    progress.unlink(missing_ok=True)


def _watched(
    process: subprocess.Popen[bytes], cells: Sequence[Cell], progress: Path, deadline: float
) -> str | None:
    """Wait for a worker; return why its last cell has no numbers, if it died or hung there."""
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

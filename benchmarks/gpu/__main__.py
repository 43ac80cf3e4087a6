"""Measure on a GPU; or at toy size on a CPU, to try this program.

python -m benchmarks.gpu --output rows.jsonl --time-limit 540
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import attrs
import torch

from benchmarks import rows
from benchmarks.bench import Bench, Cell, run
from benchmarks.gpu import plan, supervisor, worker
from benchmarks.gpu.scale import REAL, TOY, Scale
from benchmarks.gpu.tables import show


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--output", type=Path, help="where rows go; by default benchmarks/results/gpu-CARD.jsonl"
    )
    parser.add_argument("--time-limit", type=float, default=540.0, help="seconds")
    parser.add_argument("--only", nargs="+", default=[""], help="cells whose keys begin so")
    parser.add_argument("--layers", type=int, help="of the models whose prefill is timed")
    parser.add_argument("--toy", action="store_true", help="toy sizes on the CPU, in this process")
    parser.add_argument(
        "--resume", type=Path, help="rows of an earlier call; what they have is not measured again"
    )
    parser.add_argument("--list", action="store_true", help="print the cells, and measure nothing")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def scale_of(options: argparse.Namespace) -> Scale:
    """Return the sizes that were asked for."""
    scale = TOY if options.toy else REAL
    return attrs.evolve(scale, timed_layers=options.layers or scale.timed_layers)


def bench_of(options: argparse.Namespace) -> Bench[Scale]:
    """Return a bench for the card. Without a GPU only toy sizes are measured."""
    if not options.toy and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; --toy tries the benchmark on the CPU")
    device = torch.device("cpu") if options.toy else torch.device("cuda", 0)
    scale = scale_of(options)
    bench = Bench(
        program="gpu",
        device=device,
        scale=scale,
        path=Path(),
        dtype=scale.dtype,
        shape=scale.shape,
    )
    card = re.sub(r"[^a-z0-9]+", "-", bench.card.lower())
    bench.path = options.output or rows.RESULTS / f"gpu-{card}.jsonl"
    return bench


def main(arguments: list[str] | None = None) -> None:
    """Measure, write each row at once, and show all rows in the end."""
    options = parsed(arguments)
    cells = [
        cell
        for cell in plan.cells(scale_of(options))
        if any(cell.key.startswith(start) for start in options.only)
    ]
    if not cells:
        raise SystemExit(f"no cell begins with {' or '.join(options.only)}; --list prints all")
    if options.list:
        print(*(f"{cell.key}  {cell.seconds:.0f} s" for cell in cells), sep="\n")
        return
    bench = bench_of(options)
    if options.worker:
        bench.known = rows.read(bench.path)
        raise SystemExit(worker.run(bench, cells, options.worker, options.deadline))
    deadline = time.time() + options.time_limit
    bench.known = earlier(options.resume, bench.card) if options.resume else []
    measured = {row.name for row in bench.known if row.benchmark == "gpu.cell"}
    cells = [cell for cell in cells if cell.key not in measured]
    bench.path.parent.mkdir(parents=True, exist_ok=True)
    bench.path.write_text("")
    rows.write(bench.path, bench.known)
    if options.toy:
        try_out(bench, cells)
    else:
        supervisor.run(bench, cells, worker_command(options, bench), deadline)
    show(rows.read(bench.path))


def earlier(path: Path, card: str) -> list[rows.Row]:
    """Return the rows of an earlier call, without those of cells that it had no time for."""
    try:
        found = rows.read(path)
    except (OSError, ValueError, TypeError) as error:
        raise SystemExit(
            f"--resume needs the rows of an earlier call, and {path} has others: {error}. Take a "
            "line out that is not whole, or leave out --resume."
        ) from error
    if others := {row.device for row in found} - {card}:
        raise SystemExit(
            f"--resume needs rows of this device, {card}, but {path} has those of "
            f"{', '.join(sorted(others))}. Leave out --resume."
        )
    return [row for row in found if row.failure != worker.NO_TIME]


def try_out(bench: Bench[Scale], cells: Sequence[Cell[Scale]]) -> None:
    """Run all cells in this process, on one thread: at this size more threads only wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(bench, cells)
    finally:
        torch.set_num_threads(threads)


def worker_command(options: argparse.Namespace, bench: Bench[Scale]) -> list[str]:
    """Return the command line of a process that measures the same cells."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--output", str(bench.path.resolve())]
    command += ["--only", *options.only]
    command += ["--layers", str(options.layers)] if options.layers else []
    return command + (["--toy"] if options.toy else [])


if __name__ == "__main__":
    main()

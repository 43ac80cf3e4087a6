"""Measure speed and memory on this CPU: python -m benchmarks.cpu --output rows.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks import bench
from benchmarks.bench import Bench
from benchmarks.cpu import plan
from benchmarks.cpu.scale import FULL, TOY, Scale
from benchmarks.cpu.targets import TARGETS, with_exponents
from benchmarks.rows import RESULTS
from benchmarks.targets import target_table, verdicts


def bench_of(scale: Scale, path: Path) -> Bench[Scale]:
    """Return a bench whose rows replace those of the file; they tell the fastest repeat."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    return Bench(
        program="cpu",
        device=torch.device("cpu"),
        scale=scale,
        path=path,
        dtype=torch.float32,
        value_of=lambda timing: timing.minimum,
    )


def main(
    output: Annotated[Path, typer.Option(help="Where rows go, in place of what is there.")] = (
        RESULTS / "cpu.jsonl"
    ),
    only: Annotated[
        list[str] | None, typer.Option(help="Only cells whose keys begin so, and all checks.")
    ] = None,
    toy: Annotated[bool, typer.Option(help="Sizes that only show that everything runs.")] = False,
    threads: Annotated[int, typer.Option(help="Of torch; a single one is steadiest.")] = 1,
) -> None:
    """Measure, and compare with the targets; exit with 1 if anything failed."""
    scale = TOY if toy else FULL
    made, before = bench_of(scale, output), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            bench.run(made, plan.cells(scale, ["checks", *(only or [""])]))
    finally:
        torch.set_num_threads(before)
    found = verdicts(TARGETS, with_exponents(made.known))
    console = Console(width=130)
    console.print(target_table("CPU targets", found))
    failures = sorted({row.failure for row in made.known if row.failure})
    for failure in failures:
        console.print(f"no number: {failure}", markup=False)
    raise typer.Exit(1 if failures else 0)


if __name__ == "__main__":
    typer.run(main)

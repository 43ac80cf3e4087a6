"""Counts what each recipe makes the host of a GPU do, and prints it; no GPU is needed.

python -m benchmarks.waits
python -m benchmarks.waits --recipe cam --output benchmarks/results/waits.jsonl
python -m benchmarks.waits --recipe cam --operations
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import kvpolicy
from benchmarks import rows
from benchmarks.eviction_memory import BUDGET as LONG_BUDGET
from benchmarks.layers import LayerShape
from benchmarks.waits.forwards import BATCHES, BUDGET, LENGTH, Batch, costs
from benchmarks.waits.lengths import LENGTHS, eviction
from benchmarks.waits.operations import HEADER, operations
from benchmarks.waits.table import COLUMNS, LENGTH_HEADER, cells, length_cells

PATH = rows.RESULTS / "waits.jsonl"
UNIT = "a layer"


def recipes() -> list[str]:
    """Return the names of all recipes that evict."""
    return sorted(each.name for each in kvpolicy.installed() if each.kind == "recipe")


def counted(recipe: str, batch: Batch) -> Iterator[rows.Row]:
    """Yield a row for each kind of cost of a prompt and of a decoded token."""
    for phase, of_phase in costs(recipe, batch).items():
        for kind, cost in of_phase.items():
            yield rows.Row(
                benchmark=f"waits.{phase}",
                name=recipe,
                variant=f"{batch.name}: {kind}",
                value=cost.layer,
                unit=UNIT,
                device="none: counted",
                dtype="bfloat16",
                shape={"B": len(batch.padding), "L": LENGTH, "K": BUDGET},
                settings={
                    "batch": batch.name,
                    "kind": kind,
                    "forward": cost.forward,
                    "date": date.today().isoformat(),
                },
                versions=dict(rows.versions()),
            )


def by_length(recipe: str) -> Iterator[rows.Row]:
    """Yield a row for an eviction of each length at the shapes of a real model."""
    for length in LENGTHS:
        found = eviction(recipe, length)
        yield rows.Row(
            benchmark="waits.eviction",
            name=recipe,
            value=found.launches,
            unit="launches",
            device="none: counted",
            dtype="bfloat16",
            shape={"B": 1, "L": length, "K": LONG_BUDGET} | LayerShape().shape,
            settings={
                "waits": found.waits,
                "memory": round(found.share, 5),
                "date": date.today().isoformat(),
            },
            versions=dict(rows.versions()),
        )


def replace(path: Path, found: Sequence[rows.Row]) -> None:
    """Write rows to a file, in place of all that it has of the same recipes."""
    names = {row.name for row in found}
    others = rows.read(path) if path.exists() else []
    kept = [row for row in others if row.name not in names]
    path.unlink(missing_ok=True)
    # Evictions by length come last.
    ordered = sorted([*kept, *found], key=lambda row: (row.benchmark == "waits.eviction", row.name))
    rows.write(path, ordered)


def print_operations(names: list[str]) -> None:
    """Print which lines call for what, in a prompt and in a token of one row."""
    table = Table(*HEADER)
    for name in names:
        for line in operations(name, BATCHES[0]):
            table.add_row(*line)
    Console(width=160).print(table)


def main(
    recipe: Annotated[list[str] | None, typer.Option(help="Which recipes.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where rows go; those of other recipes stay there.")
    ] = None,
    list_operations: Annotated[
        bool, typer.Option("--operations", help="Print which lines call for what instead.")
    ] = False,
) -> None:
    """Print launches / waits / copies of a layer, and those of a forward beside its layers."""
    names = recipe or recipes()
    if list_operations:
        print_operations(names)
        return
    found = [row for name in names for batch in BATCHES for row in counted(name, batch)]
    long = [row for name in names for row in by_length(name)]
    if output is not None:
        replace(output, [*found, *long])
    table = Table("recipe", *(f"{phase}, {batch}" for phase, batch in COLUMNS))
    for line in cells(found):
        table.add_row(*line)
    lengths = Table(*LENGTH_HEADER)
    for line in length_cells(long):
        lengths.add_row(*line)
    console = Console(width=200)
    console.print(table)
    console.print(lengths)


if __name__ == "__main__":
    typer.run(main)

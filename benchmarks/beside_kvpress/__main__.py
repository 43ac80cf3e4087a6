"""Compare evictions of one layer with those of kvpress, which has an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.rows import RESULTS, Row, machine, versions, write

ROOT = Path(__file__).parents[2]
METHODS = (
    "snapkv", "pyramidkv", "adakv", "chunkkv", "criticalkv", "knorm", "keydiff", "lagkv", "tova",
    "streamingllm", "random",
)  # fmt: skip
LEAST = 1.5
"""How many times as fast as kvpress each method should be."""
BOUND_BY_PRODUCTS = ("criticalkv",)
"""Methods that spend nearly all their time in products that both must compute."""
TIME, MEMORY, SPEED = "time of evicting half", "extra memory of evicting half", "speed"

Found: TypeAlias = Mapping[str, Mapping[str, float]]


def measured(python: Path | str, module: str, methods: Sequence[str], length: int) -> Found:
    """Run a module of this folder with an interpreter; return seconds and MiB by method."""
    command = [str(python), "-m", f"benchmarks.beside_kvpress.{module}", *methods]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--length", str(length)],
        capture_output=True, text=True, check=False, env=one_thread, cwd=ROOT,
    )  # fmt: skip
    if done.returncode:
        typer.echo(done.stderr, err=True)
        raise typer.Exit(1)
    lines = map(json.loads, done.stdout.splitlines())
    return {line["method"]: {"s": line["seconds"], "MiB": line["mib"]} for line in lines}


def least(runs: Sequence[Found]) -> Found:
    """Return the fastest and the smallest of several runs."""
    return {
        method: {unit: min(run[method][unit] for run in runs) for unit in ("s", "MiB")}
        for method in runs[0]
    }


def rows_of(ours: Found, theirs: Found, length: int) -> Iterator[Row]:
    """Yield the rows of all methods."""
    for method in ours:
        times = theirs[method]["s"] / ours[method]["s"]
        pair = (("kvpolicy", ours[method]), ("kvpress", theirs[method]))
        found = [(who, unit, value) for who, numbers in pair for unit, value in numbers.items()]
        for who, unit, value in [*found, ("kvpolicy", "ratio", times)]:
            yield Row(
                benchmark="kvpress",
                name={"s": TIME, "MiB": MEMORY, "ratio": SPEED}[unit],
                variant=f"{method}, {who}",
                value=value,
                unit=unit,
                against="kvpress" if unit == "ratio" else None,
                device="cpu",
                machine=machine(),
                dtype="float32",
                shape={"S": length, "H": 32, "N": 8, "D": 128, "K": length // 2},
                versions={**versions(), "kvpress": "0.5.5"},
            )


def main(
    python: Annotated[Path, typer.Option(help="An interpreter that has kvpress.")],
    method: Annotated[list[str] | None, typer.Option(help="Which methods.")] = None,
    length: Annotated[int, typer.Option(help="Positions of the layer.")] = 16_384,
    turns: Annotated[int, typer.Option(help="Processes of each, in turns; the best counts.")] = 2,
    output: Annotated[Path, typer.Option(help="Where rows go.")] = RESULTS / "kvpress.jsonl",
) -> None:
    """Print how many times as fast as kvpress each method is; exit with 1 if one is too slow."""
    methods = tuple(method or METHODS)
    both: dict[str, list[Found]] = {"ours": [], "theirs": []}
    for _ in range(turns):
        for script, interpreter in (("ours", sys.executable), ("theirs", python.absolute())):
            both[script].append(measured(interpreter, script, methods, length))
    ours, theirs = (least(runs) for runs in both.values())
    output.unlink(missing_ok=True)
    write(output, rows_of(ours, theirs, length))
    table = Table("method", "kvpolicy", "kvpress", "times as fast", "kvpolicy", "kvpress")
    slow = False
    for name in methods:
        times = theirs[name]["s"] / ours[name]["s"]
        slow = slow or (times < LEAST and name not in BOUND_BY_PRODUCTS)
        seconds, memory = ([each[name][unit] for each in (ours, theirs)] for unit in ("s", "MiB"))
        table.add_row(
            name, *(f"{each:.3f} s" for each in seconds), f"{times:.1f}",
            *(f"{each:.0f} MiB" for each in memory),
        )  # fmt: skip
    Console(width=110).print(table)
    raise typer.Exit(1 if slow else 0)


if __name__ == "__main__":
    typer.run(main)

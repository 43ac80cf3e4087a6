"""Memory to rank a prompt, for each recipe: its peak, and what stays, over the prompt's length.

    python -m benchmarks.prompt_memory [--recipe h2o] [--lengths 8000,16000,30000,36000]

Each recipe runs in a process of its own, on one layer with one head of 4 channels. The prompts
follow one another there, so that memory which an earlier prompt left is counted. Ends with status 1
if a prompt takes more than the limit, whatever the recipe computes.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

import kvpolicy
from kvpolicy.cache.eviction.one_layer import evicted
from kvpolicy.observation.observation import Observation
from kvpolicy.observation.rotary import PlainRotary

LENGTHS = (8_000, 16_000, 30_000, 36_000)
LIMIT = 500
"""MB. The keys of the longest prompt are 0.6 MB; blocks of logits are 16 MB, and several are in use
at once."""


def status(name: str) -> float:
    """Return a size of this process in MB, from /proc."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def measured(recipe: str, lengths: list[int]) -> list[tuple[float, float]]:
    """Return the peak and what stays of each prompt, in MB above what was there before."""
    torch.set_num_threads(1)
    policy, found = kvpolicy.recipe(recipe, budget=1024), []
    for length in lengths:
        generator = torch.Generator().manual_seed(length)
        queries, keys, values = (
            torch.randn(1, 1, length, 4, generator=generator) for _ in range(3)
        )
        layer = Observation(
            queries=queries,
            keys=keys,
            values=values,
            seen=length,
            num_layers=8,
            output_weight=torch.eye(4),
            rotary=PlainRotary(dim=4),
        )
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", "ascii")
        before = status("VmRSS")
        with torch.no_grad():
            evicted(policy, layer)
        found.append((status("VmHWM") - before, status("VmRSS") - before))
    return found


def _in_a_process(recipe: str, lengths: str) -> list[tuple[float, float]]:
    command = [sys.executable, "-m", "benchmarks.prompt_memory", "--child", recipe]
    done = subprocess.run(
        [*command, "--lengths", lengths], capture_output=True, text=True, check=True
    )
    numbers = [tuple(map(float, line.split())) for line in done.stdout.splitlines()]
    return [(peak, kept) for peak, kept in numbers]


def main(
    recipe: Annotated[list[str] | None, typer.Option(help="Which recipes.")] = None,
    lengths: Annotated[str, typer.Option(help="Tokens of each prompt.")] = ",".join(
        map(str, LENGTHS)
    ),
    child: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print the table of all recipes."""
    counts = [int(length) for length in lengths.split(",")]
    if child is not None:
        for peak, kept in measured(child, counts):
            typer.echo(f"{peak:.1f} {kept:.1f}")
        return
    names = recipe or [each.name for each in kvpolicy.installed() if each.kind == "recipe"]
    table = Table("recipe", *(f"{count:,} tokens" for count in counts), "within the limit")
    worst = 0.0
    for name in names:
        kvpolicy.recipe(name)  # an unknown name is refused here, with the choices
    for name in names:
        found = _in_a_process(name, lengths)
        highest = max(peak for peak, _ in found)
        worst = max(worst, highest)
        cells = [f"+{peak:.0f} MB, {kept:.0f} MB stay" for peak, kept in found]
        table.add_row(name, *cells, "yes" if highest <= LIMIT else "no")
    Console(width=150).print(table)
    raise typer.Exit(1 if worst > LIMIT else 0)


if __name__ == "__main__":
    typer.run(main)

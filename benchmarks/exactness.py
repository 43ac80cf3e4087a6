"""The exactness table: the largest logit difference of every usage on every family.

    python -m benchmarks.exactness [--recipe restkv] [--budget 24] [--markdown | --json]
    python -m benchmarks.exactness --every-recipe    (on one family, by default llama)

Each cell compares a `PolicyCache` with a full cache whose evicted entries are masked at their true
positions (float32, random weights). "nothing to evict" must be 0: equal bit for bit.
"""

from __future__ import annotations

import json
import warnings
from typing import Annotated

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from kvpolicy import Policy, installed
from kvpolicy.budget import Budget
from kvpolicy.commands.budgets import read_budget
from kvpolicy.errors import UnsupportedModelError
from kvpolicy.stages.compaction import GatherCompactor
from kvpolicy.testing.models import FAMILIES, tiny_model
from kvpolicy.testing.usage import USAGES, small_policy

AGAINST_ITSELF = (
    "padded row alone",
    "long padded row alone",
    "interleaved conversations",
    "nothing to evict",
)
"""Usages that compare a policy with itself, or with nothing evicted."""
LAYERS = {"num_hidden_layers": 4}
"""Room for a ladder over layers."""
LIMIT = 1e-4
"""Logits of float32 models may differ by this much: the order of sums differs, nothing else."""


def measure(policy: Policy, families: list[str]) -> list[dict[str, object]]:
    """Return one row for each family and attention implementation."""
    rows: list[dict[str, object]] = []
    for family in families:
        for attention in ("sdpa", "eager"):
            try:
                model = tiny_model(family, attn_implementation=attention)
                cells = {name: usage(model, policy) for name, usage in USAGES.items()}
            except (UnsupportedModelError, ValueError) as error:
                rows.append({"family": family, "attention": attention, "refused": str(error)})
                continue
            rows.append({"family": family, "attention": attention, **cells})
    return rows


def measure_recipes(recipes: list[str], family: str, budget: Budget) -> list[dict[str, object]]:
    """Return one row for each recipe, on one family with sdpa."""
    model = tiny_model(family, **LAYERS)
    rows: list[dict[str, object]] = []
    for name in recipes:
        policy = small_policy(name, budget=budget)
        # What a compactor changes, the full cache of the yardstick does not.
        unchanged = isinstance(policy.compactor, GatherCompactor)
        cells = {
            usage: run(model, policy) if unchanged or usage in AGAINST_ITSELF else "changed"
            for usage, run in USAGES.items()
        }
        rows.append({"family": f"{family}, {name}", "attention": "sdpa", **cells})
    return rows


def main(
    recipe: Annotated[str, typer.Option(help="Which recipe evicts.")] = "restkv",
    budget: Annotated[str, typer.Option(help="Positions (24), or a share (0.4, 40%).")] = "24",
    every_recipe: Annotated[bool, typer.Option(help="A row for each installed recipe.")] = False,
    family: Annotated[list[str] | None, typer.Option(help="Only these families.")] = None,
    markdown: Annotated[bool, typer.Option(help="Print the table as Markdown.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per row.")] = False,
) -> None:
    """Measure and print the table; exit with 1 if a cell is above the limit."""
    warnings.filterwarnings("ignore")
    torch.set_grad_enabled(False)
    if every_recipe:
        recipe = "every recipe"
        names = sorted(part.name for part in installed("recipe"))
        rows = measure_recipes(names, (family or ["llama"])[0], read_budget(budget))
    else:
        rows = measure(small_policy(recipe, budget=read_budget(budget)), family or list(FAMILIES))
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
    else:
        title = f"{recipe}, budget {budget}: largest logit difference"
        _print(rows, None if markdown else title, box.MARKDOWN if markdown else box.SIMPLE)
    cells = [value for row in rows for value in row.values() if isinstance(value, float)]
    wrong = sum(not value <= LIMIT for value in cells)
    refused = [row for row in rows if "refused" in row]
    typer.echo(
        f"{len(cells) - wrong} cells exact (<= {LIMIT:g}), {wrong} wrong; "
        f"{len(refused)} rows refused"
        + "".join(f"\n{row['family']}, {row['attention']}: {row['refused']}" for row in refused),
        err=as_json,
    )
    raise typer.Exit(1 if wrong else 0)


def _print(rows: list[dict[str, object]], title: str | None, style: box.Box) -> None:
    table = Table(title=title, box=style)
    table.add_column("family", no_wrap=True)
    for usage in USAGES:
        table.add_column(usage, justify="right", no_wrap=style is box.MARKDOWN)
    for row in rows:
        cells = [row.get(usage, "refused") for usage in USAGES]
        shown = [f"{cell:.0e}" if isinstance(cell, float) else str(cell) for cell in cells]
        table.add_row(f"{row['family']}, {row['attention']}", *shown)
    Console(width=400 if style is box.MARKDOWN else 36 + 14 * len(USAGES)).print(table)


if __name__ == "__main__":
    typer.run(main)

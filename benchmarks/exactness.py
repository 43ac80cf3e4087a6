"""The exactness table: the largest logit difference of every usage on every family.

    python -m benchmarks.exactness [--recipe restkv] [--budget 24] [--json]

Each cell compares a `PolicyCache` with a full cache whose evicted entries are masked at their true
positions (float32, random weights). "nothing to evict" must be 0: equal bit for bit.
"""

from __future__ import annotations

import json
import warnings
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

import kvpolicy
from kvpolicy.errors import UnsupportedModelError
from kvpolicy.testing.models import FAMILIES, tiny_model
from kvpolicy.testing.usage import USAGES

LIMIT = 1e-4
"""Logits of float32 models may differ by this much: the order of sums differs, nothing else."""


def small_policy(recipe: str, budget: float) -> kvpolicy.Policy:
    """Return a recipe with a window that fits prompts of 60 tokens."""
    policy = kvpolicy.recipe(recipe)
    if policy.scorer.window is None or policy.scorer.window <= 8:
        return kvpolicy.recipe(recipe, budget=budget)
    scorer = policy.to_dict()["scorer"] | {"window": 8}
    return kvpolicy.recipe(recipe, scorer=scorer, budget=budget)


def measure(recipe: str, budget: float, families: list[str]) -> list[dict[str, object]]:
    """Return one row for each family and attention implementation."""
    rows: list[dict[str, object]] = []
    for family in families:
        for attention in ("sdpa", "eager"):
            try:
                model = tiny_model(family, attn_implementation=attention)
                cells = {
                    name: usage(model, small_policy(recipe, budget))
                    for name, usage in USAGES.items()
                }
            except (UnsupportedModelError, ValueError) as error:
                rows.append({"family": family, "attention": attention, "refused": str(error)})
                continue
            rows.append({"family": family, "attention": attention, **cells})
    return rows


def main(
    recipe: Annotated[str, typer.Option(help="Which recipe evicts.")] = "restkv",
    budget: Annotated[float, typer.Option(help="Positions, or a share below 1.")] = 24,
    family: Annotated[list[str] | None, typer.Option(help="Only these families.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per row.")] = False,
) -> None:
    """Measure and print the table; exit with 1 if a cell is above the limit."""
    warnings.filterwarnings("ignore")
    torch.set_grad_enabled(False)
    positions = int(budget) if budget >= 1 else budget
    rows = measure(recipe, positions, family or list(FAMILIES))
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
    else:
        _print(rows, f"{recipe}, budget {positions}: largest logit difference")
    cells = [value for row in rows for value in row.values() if isinstance(value, float)]
    wrong = sum(not value <= LIMIT for value in cells)
    refused = sum("refused" in row for row in rows)
    summary = f"{len(cells) - wrong} cells exact (<= {LIMIT:g}), {wrong} wrong, {refused} refused"
    typer.echo(summary, err=as_json)
    for row in rows:
        if "refused" in row:
            typer.echo(
                f"{row['family']}, {row['attention']} refused: {row['refused']}", err=as_json
            )
    raise typer.Exit(1 if wrong else 0)


def _print(rows: list[dict[str, object]], title: str) -> None:
    table = Table(title=title)
    table.add_column("family", no_wrap=True)
    for usage in USAGES:
        table.add_column(usage.replace(" ", "\n"), justify="right")
    for row in rows:
        cells = [row.get(usage, "refused") for usage in USAGES]
        shown = [f"{cell:.0e}" if isinstance(cell, float) else str(cell) for cell in cells]
        table.add_row(f"{row['family']}, {row['attention']}", *shown)
    Console(width=32 + 11 * len(USAGES)).print(table)


if __name__ == "__main__":
    typer.run(main)

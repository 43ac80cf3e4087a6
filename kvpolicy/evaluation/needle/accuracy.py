"""How many questions the needle model answers exactly with the full cache.

python -m kvpolicy.evaluation.needle.accuracy [--json]
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvpolicy.evaluation.evaluate import evaluate
from kvpolicy.evaluation.needle import MODEL, load


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokens: Iterable[int],
    facts: Iterable[int],
    prompts: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return the share of exact answers and its interval, for each length and number of facts."""
    sizes = list(product(tokens, facts))
    found = evaluate(
        model,
        tokenizer,
        recipes=[],
        tasks=[
            {
                "name": "needle",
                "length": length,
                "facts": told,
                "num_samples": prompts,
                "seed": seed,
            }
            for length, told in sizes
        ],
    )
    estimates = [cell.estimate for cell in found.cells]
    return [
        {
            "tokens": length,
            "facts": told,
            "prompts": prompts,
            "correct": round(prompts * estimate.value),
            "exact": estimate.value,
            "interval": list(estimate.interval or ()),
        }
        for (length, told), estimate in zip(sizes, estimates, strict=True)
        if estimate is not None
    ]


def table(cells: Iterable[dict[str, Any]]) -> Table:
    """Return a table with a line for each length and number of facts."""
    made = Table(title="Exact answers with the full cache (95 % Wilson interval)")
    for name in ("tokens", "facts", "prompts", "correct", "exact", "interval"):
        made.add_column(name, justify="right")
    for cell in cells:
        low, high = cell["interval"]
        counts = (str(cell[name]) for name in ("tokens", "facts", "prompts", "correct"))
        made.add_row(*counts, f"{cell['exact']:.1%}", f"{low:.1%} to {high:.1%}")
    return made


def main(
    tokens: Annotated[str, typer.Option(help="Lengths of prompts.")] = "512,1024,2048",
    facts: Annotated[str, typer.Option(help="Numbers of facts.")] = "8,16,32,64",
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of each length and facts.")] = 200,
    seed: Annotated[int, typer.Option(help="Another seed writes other prompts.")] = 0,
    folder: Annotated[Path, typer.Option("--model", help="The model's folder.")] = MODEL,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Measure each length with each number of facts, and print the shares."""
    cells = measure(
        *load(folder),
        tokens=map(int, tokens.split(",")),
        facts=map(int, facts.split(",")),
        prompts=prompts,
        seed=seed,
    )
    if as_json:
        for cell in cells:
            typer.echo(json.dumps(cell))
    else:
        Console().print(table(cells))


if __name__ == "__main__":
    typer.run(main)

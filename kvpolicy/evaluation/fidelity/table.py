"""How far each recipe's cache is from the full one, between chance and an oracle.

The needle model reads a prompt, the policy evicts, and the model is given the right answer word by
word. The error is ||y - y_full|| / ||y_full||, with y the output of an attention block behind its
output projection. Each block is given the inputs that it has with the full cache. The table shows
the mean over blocks, words and prompts, and its standard error over prompts. "gap closed" is
(random - policy) / (random - oracle) of these errors: `oracle` knows the queries to come, `random`
is the mean of several draws. "right" is the share of prompts that greedy decoding answers right.

A recipe has its own settings, except for the budget. One that evicts while decoding does so here
too, after so many words as its `every` says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from kvpolicy import installed
from kvpolicy.evaluation import needle
from kvpolicy.evaluation.fidelity.entrants import BEST, PAIRS, WORST, entrants
from kvpolicy.evaluation.fidelity.measurement import Entrant, fidelity
from kvpolicy.evaluation.fidelity.rows import Estimate, Fidelity, FidelityRow
from kvpolicy.evaluation.needle.reader import Reader, batches


def measure(
    recipes: Sequence[str],
    budgets: Sequence[int],
    *,
    prompts: int,
    tokens: int,
    facts: int,
    seed: int,
) -> Fidelity:
    """Measure all entrants on the same prompts, under a progress bar."""
    disable_progress_bar()
    reader = Reader(*needle.load())
    questions = needle.generate_prompts(tokens=tokens, facts=facts, count=prompts, seed=seed)
    accepted, refused = entrants(recipes, budgets)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(accepted) * len(batches(questions)))

        def advance(entrant: Entrant) -> None:
            progress.update(task, advance=1, description=f"{entrant.name} at {entrant.budget}")

        return fidelity(
            reader, questions, accepted, refused, worst=WORST, best=BEST, on_batch=advance
        )


def main(
    name: Annotated[
        list[str] | None, typer.Option("--recipe", help="Only these recipes, beside chance.")
    ] = None,
    budgets: Annotated[str, typer.Option(help="Positions for each head.")] = "40,64,128",
    prompts: Annotated[int, typer.Option(min=2, help="How many prompts.")] = 32,
    tokens: Annotated[int, typer.Option(help="Length of each prompt.")] = 512,
    facts: Annotated[int, typer.Option(min=1, help="Facts in each prompt.")] = 32,
    seed: Annotated[int, typer.Option(help="Another seed writes other prompts.")] = 0,
    markdown: Annotated[bool, typer.Option(help="Print the tables as Markdown.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure, and print a table for each budget."""
    found = measure(
        name or [part.name for part in installed("recipe")],
        [int(budget) for budget in budgets.split(",")],
        prompts=prompts,
        tokens=tokens,
        facts=facts,
        seed=seed,
    )
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
        return
    console = Console(width=200 if markdown else None, highlight=False, markup=False)
    for budget in found.budgets:
        title = f"{budget} of {found.tokens} positions"
        if markdown:
            console.print(f"### {title}\n")
        console.print(_table(found, budget, None if markdown else title, markdown=markdown))
    for line in notes(found):
        console.print(f"- {line}" if markdown else line, soft_wrap=True)


def _table(found: Fidelity, budget: int, title: str | None, *, markdown: bool) -> Table:
    table = Table(title=title, box=box.MARKDOWN if markdown else box.SIMPLE)
    table.add_column("policy", no_wrap=True)
    for heading in ("error", "gap closed", "right"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found.at(budget):
        table.add_row(
            row.name if row.every is None else f"{row.name} (every {row.every})",
            f"{row.error.value:.3f} ± {row.error.error:.3f}",
            _percent(found.gap_closed(row)),
            f"{100 * row.accuracy:.0f} %",
        )
    return table


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    return f"{100 * estimate.value:.0f} ± {100 * estimate.error:.0f} %"


def notes(found: Fidelity) -> Iterator[str]:
    """Yield sentences on what the tables leave out: the full cache, pairs of variants, refusals."""
    right, prompts = sum(found.full), len(found.full)
    yield f"The full cache answers {right} of {prompts} prompts right; its error is 0."
    for mine, theirs in PAIRS:
        differences = [
            f"{_signed(pair[0].minus(pair[1]))} at {budget}"
            for budget in found.budgets
            if (pair := _pair(found, mine, theirs, budget))
        ]
        if differences:
            yield f"'{mine}' against '{theirs}', prompt by prompt: {', '.join(differences)}."
    for refusal in found.refusals:
        yield f"{refusal.name} refuses {refusal.budget}: {refusal.reason}"


def _pair(
    found: Fidelity, mine: str, theirs: str, budget: int
) -> tuple[FidelityRow, FidelityRow] | None:
    first, second = found.row(mine, budget), found.row(theirs, budget)
    return None if first is None or second is None else (first, second)


def _signed(estimate: Estimate) -> str:
    return f"{estimate.value:+.4f} ± {estimate.error:.4f}"

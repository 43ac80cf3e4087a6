"""How true each recipe's cache stays to the full one, between chance and an oracle.

    python -m benchmarks.fidelity [--budgets 40,64,128] [--prompts 32] [--markdown | --json]

On the needle model: after a prompt has been evicted, it is given the right answer word by word.
The error is ||y - y_full|| / ||y_full|| of each attention block's output y behind the output
projection, each block judged by itself, averaged over layers and words, then over prompts (± the
standard error over prompts). "gap closed" is (random - policy) / (random - oracle) of these errors:
`oracle` knows the queries to come, `random` is the mean of several draws. "right" are the answers
that greedy decoding gets right, from the first word to the last.

Every recipe has its own settings but for the budget. Recipes that evict while decoding (`every`) do
so here as well, whenever so many words have been read since the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from kvpolicy import Policy, compose, installed, recipe
from kvpolicy.errors import KvpolicyError
from kvpolicy.evaluation import needle
from kvpolicy.evaluation.comparison import batches
from kvpolicy.evaluation.fidelity import Entrant, fidelity
from kvpolicy.evaluation.fidelity_rows import Estimate, Fidelity, FidelityRow
from kvpolicy.evaluation.reader import Reader
from kvpolicy.evaluation.results import Refusal
from kvpolicy.metrics import Recording

WORST, BEST = "random", "oracle"
DRAWS = 8
"""How often chance is drawn: one draw may by chance keep a head's attention sink in all prompts."""

JOINT, WITH_WINDOW = {"name": "jointrestkv"}, {"o_includes_window": True}
UNPOOLED = {"name": "spatiotemporal", "pooling": "none"}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "restkv, joint": {"scorer": JOINT},
    "restkv, o with window": {"scorer": {"name": "restkv", **WITH_WINDOW}},
    "restkv, joint, o with window": {"scorer": JOINT | WITH_WINDOW},
    "restkv, unpooled": {"smoother": UNPOOLED},
    "restkv, joint, unpooled": {"scorer": JOINT, "smoother": UNPOOLED},
}
"""Settings of recipe `restkv` that are compared with its defaults."""

PAIRS = (
    ("restkv, joint", "restkv"),
    ("restkv, joint, o with window", "restkv, o with window"),
    ("restkv, joint, unpooled", "restkv, unpooled"),
    ("restkv, o with window", "restkv"),
)
"""Which settings are compared prompt by prompt."""


def entrants(recipes: Sequence[str], budgets: Sequence[int]) -> tuple[list[Entrant], list[Refusal]]:
    """Return everyone, budget by budget, and who refuses a budget, with the reason."""
    accepted, refused = [], []
    for budget in sorted(set(budgets)):
        for title, name, changes in settings(recipes):
            try:
                policies = [recipe(name, budget=budget, **each) for each in changes]
            except KvpolicyError as error:
                refused.append(Refusal(name=title, budget=budget, reason=str(error)))
            else:
                same = partial(_same, policies)
                accepted.append(Entrant(name=title, budget=budget, policies=same))
        accepted.append(Entrant(name=BEST, budget=budget, policies=partial(_oracle, budget)))
    return accepted, refused


def settings(
    recipes: Sequence[str],
) -> Iterator[tuple[str, str, Sequence[Mapping[str, Any]]]]:
    """Give each title, its recipe and what is changed of it; chance is always there."""
    yield WORST, WORST, [{"scorer": {"name": WORST, "seed": seed}} for seed in range(DRAWS)]
    for name in sorted(set(recipes) - {WORST}):
        yield name, name, [{}]
    if "restkv" in recipes:
        for title, changes in VARIANTS.items():
            yield title, "restkv", [changes]


def _same(policies: Sequence[Policy], recording: Recording) -> Sequence[Policy]:
    return policies


def _oracle(budget: int, recording: Recording) -> Sequence[Policy]:
    return [compose(scorer={"name": BEST, "future": recording}, recent=0, budget=budget)]


def measure(
    recipes: Sequence[str],
    budgets: Sequence[int],
    *,
    prompts: int,
    tokens: int,
    facts: int,
    seed: int,
) -> Fidelity:
    """Run everyone on the same prompts, under a progress bar."""
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
        list[str] | None, typer.Option("--recipe", help="Only these; chance is always there.")
    ] = None,
    budgets: Annotated[str, typer.Option(help="Positions for each head.")] = "40,64,128",
    prompts: Annotated[int, typer.Option(min=2, help="How many prompts.")] = 32,
    tokens: Annotated[int, typer.Option(help="Length of every prompt.")] = 512,
    facts: Annotated[int, typer.Option(min=1, help="Facts told in every prompt.")] = 32,
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
    """Say what the table does not: the full cache, settings prompt by prompt, and refusals."""
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


if __name__ == "__main__":
    typer.run(main)

"""What replayed queries are worth: errors at equal budgets, prompt by prompt against ReST-KV.

python -m kvpolicy.evaluation.replays

The beds and the errors are those of `kvpolicy.evaluation.targets`: the needle model with the
question visible to the policy or hidden from it, or stretches of prose and of code for another
model. The error of a prompt is the mean over layers and over the tokens that follow. Every policy
keeps the same number of positions, on average over layers and heads.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import attrs
import torch
import typer
from transformers.utils.logging import disable_progress_bar

from kvpolicy import Policy, compose, recipe
from kvpolicy.evaluation.fidelity.rows import Estimate
from kvpolicy.evaluation.measures.reconstruction import Recording, token_errors
from kvpolicy.evaluation.targets import Bed, beds

BASE = "restkv"
"""The entrant that all others are compared with."""

Entrant = Callable[[Recording, int], Policy]


def _oracle(future: Recording, budget: int) -> Policy:
    return compose(scorer={"name": "oracle", "future": future}, recent=0, budget=budget)


def _recipe(name: str, **options: object) -> Entrant:
    """Return a recipe, with other options of its scorer."""
    if not options:
        return lambda future, budget: recipe(name, budget=budget)
    return lambda future, budget: recipe(name, budget=budget, scorer=options)


def _forward(future: Recording, budget: int) -> Policy:
    return recipe("replay", scorer={"name": "forward"}, budget=budget)


ENTRANTS: Mapping[str, Entrant] = {
    "oracle": _oracle,
    BASE: _recipe("restkv"),
    "snapkv": _recipe("snapkv"),
    "expectedattention": _recipe("expectedattention"),
    "replay": _recipe("replay"),
    "replay, no hop": _recipe("replay", hops=0),
    "replay, snapkv asked": _recipe("replay", scorer="snapkv"),
    "forward": _forward,
}


@attrs.frozen(kw_only=True)
class Measured:
    """The errors of one policy on the prompts of a bed."""

    bed: str
    name: str
    budget: int
    errors: tuple[float, ...]


@torch.no_grad()
def measured(bed: Bed, name: str, budget: int) -> Measured:
    """Measure one entrant at one budget on all prompts of a bed."""
    errors = [
        token_errors(bed.model, ENTRANTS[name](each, budget), each).mean((0, 2))
        for each in bed.recordings
    ]
    return Measured(
        bed=bed.name, name=name, budget=budget, errors=tuple(torch.cat(errors).tolist())
    )


def table(rows: Sequence[Measured], model: str | None = None, *, options: str = "") -> str:
    """Return a table in Markdown for each bed: errors, and differences from ReST-KV's.

    `options` are those of the command that prints it.
    """
    lines = [
        f"# Replayed queries{f', {model}' if model else ''}",
        "",
        "Each cell has the error, ± its standard error over prompts, and how much more it is than "
        f"that of `{BASE}`, prompt by prompt. This prints the tables:",
        "",
        f"    python -m kvpolicy.evaluation.replays {options}".rstrip(),
        "",
    ]
    for bed in dict.fromkeys(row.bed for row in rows):
        mine = [row for row in rows if row.bed == bed]
        budgets = sorted({row.budget for row in mine})
        lines += [
            f"## {bed} ({len(mine[0].errors)} prompts)",
            "",
            f"| policy | {' | '.join(f'{budget} positions' for budget in budgets)} |",
            f"|---|{'---|' * len(budgets)}",
        ]
        for name in dict.fromkeys(row.name for row in mine):
            cells = [_cell(mine, name, budget) for budget in budgets]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _cell(rows: Sequence[Measured], name: str, budget: int) -> str:
    found = {row.name: row.errors for row in rows if row.budget == budget}
    error = Estimate.mean(found[name])
    told = f"{error.value:.3f} ± {error.error:.3f}"
    if name == BASE or BASE not in found:
        return told
    more = [mine - base for mine, base in zip(found[name], found[BASE], strict=True)]
    difference = Estimate.mean(more)
    return f"{told}; {difference.value:+.3f} ± {difference.error:.3f}"


def main(
    model: Annotated[str | None, typer.Option(help="Another model, or smollm2.")] = None,
    entrants: Annotated[str, typer.Option(help="Names, between semicolons.")] = ";".join(ENTRANTS),
    budgets: Annotated[str, typer.Option(help="Positions of each head.")] = "40,64,128",
    prompts: Annotated[int, typer.Option(min=2, help="Prompts of each bed.")] = 16,
    length: Annotated[int, typer.Option(help="Tokens of a stretch, for another model.")] = 512,
    only: Annotated[str | None, typer.Option("--bed", help="Only this bed, as prose.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Measure each entrant at each budget, and print a table for each bed."""
    disable_progress_bar()
    rows = []
    for bed in beds(model, prompts, length):
        if only is not None and bed.name != only:
            continue
        for name in entrants.split(";"):
            for budget in map(int, budgets.split(",")):
                rows.append(measured(bed, name.strip(), budget))
                if as_json:
                    typer.echo(json.dumps(attrs.asdict(rows[-1])))
    if not as_json:
        given = {"model": model, "bed": only, "prompts": prompts, "budgets": budgets}
        if entrants != ";".join(ENTRANTS):
            given["entrants"] = entrants
        options = shlex.join(f"--{name}={value}" for name, value in given.items() if value)
        typer.echo(table(rows, model, options=options))


if __name__ == "__main__":
    typer.run(main)

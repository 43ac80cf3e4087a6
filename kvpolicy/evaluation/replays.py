"""What replayed queries are worth: errors at equal budgets, prompt by prompt against ReST-KV.

    python -m kvpolicy.evaluation.replays
    python -m kvpolicy.evaluation.replays --model examples/needle-model/redundant --answers

The beds and the errors are those of `kvpolicy.evaluation.targets`: the needle model with the
question visible to the policy or hidden from it, another needle model, or stretches of prose and of
code for any other model. The error of a prompt is the mean over layers and over the tokens that
follow. Every policy keeps the same number of positions, on average over layers and heads. With
`--answers` this is checked, and the answers that are right are counted.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated

import attrs
import torch
import typer
from transformers.utils.logging import disable_progress_bar

from kvpolicy.evaluation.answers import Answered, answered
from kvpolicy.evaluation.entrants import BASE, ENTRANTS, FEW
from kvpolicy.evaluation.fidelity.rows import Estimate
from kvpolicy.evaluation.measures.reconstruction import token_errors
from kvpolicy.evaluation.targets import Bed, beds


@attrs.frozen(kw_only=True)
class Measured:
    """The errors of one policy on the prompts of a bed.

    `answers` are those of each portion of the prompts, if they were asked for.
    """

    bed: str
    name: str
    budget: int
    errors: tuple[float, ...]
    answers: tuple[Answered, ...] = ()


@torch.no_grad()
def measured(bed: Bed, name: str, budget: int, *, answers: bool = False) -> Measured:
    """Measure one entrant at one budget on all prompts of a bed.

    With `answers`, raises KvpolicyError if the policy holds more positions than its budget.
    """
    row = Measured(bed=bed.name, name=name, budget=budget, errors=())
    policies = [ENTRANTS[name](each, budget) for each in bed.recordings]
    pairs = list(zip(policies, bed.recordings, strict=True))
    if answers:
        found = tuple(answered(bed.model, policy, each, bed.answer) for policy, each in pairs)
        errors = tuple(error for each in found for error in each.errors)
        return attrs.evolve(row, errors=errors, answers=found)
    means = [token_errors(bed.model, policy, each).mean((0, 2)) for policy, each in pairs]
    return attrs.evolve(row, errors=tuple(torch.cat(means).tolist()))


def table(
    rows: Sequence[Measured], model: str | None = None, *, options: str = "", note: str = ""
) -> str:
    """Return a table in Markdown for each bed: errors, and differences from ReST-KV's.

    `options` are those of the command that prints it.
    """
    counted = any(row.answers for row in rows)
    lines = [
        f"# {'Beds' if counted else 'Replayed queries'}{f', {model}' if model else ''}",
        "",
        "Each cell has the error, ± its standard error over prompts, and how much more it is than "
        f"that of `{BASE}`, prompt by prompt"
        f"{', and the share of right answers' if counted else ''}. This prints the tables:",
        "",
        f"    python -m kvpolicy.evaluation.replays {options}".rstrip(),
        "",
        *([note, ""] if note else []),
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
    found = {row.name: row for row in rows if row.budget == budget}
    mine = found[name]
    error = Estimate.mean(mine.errors)
    told = [f"{error.value:.3f} ± {error.error:.3f}"]
    if name != BASE and BASE in found:
        pairs = zip(mine.errors, found[BASE].errors, strict=True)
        difference = Estimate.mean([one - base for one, base in pairs])
        told.append(f"{difference.value:+.3f} ± {difference.error:.3f}")
    if mine.answers:
        told.append(f"{_share(mine.answers):.0%}")
    return "; ".join(told)


def _share(found: Sequence[Answered]) -> float:
    """Return the share of right answers; the last portion may be smaller."""
    right = [each for portion in found for each in portion.right]
    return sum(right) / len(right)


def note(full: Mapping[str, Sequence[Answered]], rows: Sequence[Measured]) -> str:
    """Say what the full cache answers on each bed, and how much all others hold."""
    shares = ", ".join(f"{name}: {_share(found):.0%}" for name, found in full.items())
    held = [each.held / row.budget for row in rows for each in row.answers]
    sizes = [
        [each.nbytes for row in rows if row.budget == budget for each in row.answers]
        for budget in sorted({row.budget for row in rows})
    ]
    nbytes = ", ".join(f"{min(each):,.0f} to {max(each):,.0f}" for each in sizes)
    return (
        f"With the full cache, right answers are {shares}. Behind the prompt, each policy holds "
        f"{min(held):.1%} to {max(held):.1%} of its budget, on average over layers and heads. "
        f"A cache then takes {nbytes} bytes for a prompt, with what its method remembers."
    )


def main(
    model: Annotated[
        str | None, typer.Option(help="Another model, the folder of a needle model, or smollm2.")
    ] = None,
    entrants: Annotated[str, typer.Option(help="Names, between semicolons, or all.")] = ";".join(
        FEW
    ),
    budgets: Annotated[str, typer.Option(help="Positions of each head.")] = "40,64,128",
    prompts: Annotated[int, typer.Option(min=2, help="Prompts of each bed.")] = 16,
    length: Annotated[int, typer.Option(help="Tokens of a stretch, for another model.")] = 512,
    only: Annotated[str | None, typer.Option("--bed", help="Only this bed, as prose.")] = None,
    answers: Annotated[
        bool, typer.Option("--answers", help="Count right answers, for a needle model.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Measure each entrant at each budget, and print a table for each bed."""
    disable_progress_bar()
    rows: list[Measured] = []
    full: dict[str, list[Answered]] = {}
    names = list(ENTRANTS) if entrants == "all" else [each.strip() for each in entrants.split(";")]
    for bed in beds(model, prompts, length):
        if only is not None and bed.name != only:
            continue
        if answers:
            full[bed.name] = [answered(bed.model, None, x, bed.answer) for x in bed.recordings]
        for name in names:
            for budget in map(int, budgets.split(",")):
                rows.append(measured(bed, name, budget, answers=answers))
                if as_json:
                    typer.echo(json.dumps(attrs.asdict(rows[-1])))
    if not as_json:
        given = {"model": model, "bed": only, "prompts": prompts, "budgets": budgets}
        if entrants != ";".join(FEW):
            given["entrants"] = entrants
        options = shlex.join(
            [f"--{name}={value}" for name, value in given.items() if value]
            + ["--answers"] * answers
        )
        said = note(full, rows) if answers else ""
        typer.echo(table(rows, model, options=options, note=said))


if __name__ == "__main__":
    typer.run(main)

"""Policies of equal budget, prompt by prompt against ReST-KV.

    python -m kvpolicy.evaluation.beds
    python -m kvpolicy.evaluation.beds --model examples/needle-model/redundant --answers

Beds are prompts of the needle model with the question (`visible`: the answer follows) and without
it (`hidden`: question and answer follow), those of another needle model, or stretches of prose and
of code for any other model, of which the next tokens follow. The error of a prompt is the mean over
layers and over the tokens that follow. Every policy keeps the same number of positions, on average
over layers and heads. With `--answers` this is checked, and the answers that are right are counted.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from typing import Annotated

import attrs
import typer
from transformers.utils.logging import disable_progress_bar

from kvpolicy.errors import suggest
from kvpolicy.evaluation.beds.answers import Answered, answered
from kvpolicy.evaluation.beds.bed import Bed
from kvpolicy.evaluation.beds.entrants import ENTRANTS, FEW, RECIPES
from kvpolicy.evaluation.beds.measurement import Measured, measured
from kvpolicy.evaluation.beds.prompts import beds
from kvpolicy.evaluation.beds.table import note, table

LENGTH = 512
"""The tokens of a stretch, unless another number is given."""


def main(
    model: Annotated[
        str | None, typer.Option(help="Another model, the folder of a needle model, or smollm2.")
    ] = None,
    entrants: Annotated[
        str, typer.Option(help="Names, between semicolons; recipes; or all.")
    ] = ";".join(FEW),
    budgets: Annotated[str, typer.Option(help="Positions of each head.")] = "40,64,128",
    prompts: Annotated[int, typer.Option(min=2, help="Prompts of each bed.")] = 16,
    length: Annotated[
        int, typer.Option(min=64, help="Tokens of a stretch, for another model.")
    ] = LENGTH,
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
    names, sizes = _entrants(entrants), _positions(budgets)
    for bed in _chosen(beds(model, prompts, length), only):
        if answers:
            pairs = zip(bed.recordings, bed.readers, strict=True)
            full[bed.name] = [answered(None, each, reader, bed.answer) for each, reader in pairs]
        for name in names:
            for budget in sizes:
                rows.append(measured(bed, name, budget, answers=answers))
                if as_json:
                    typer.echo(json.dumps(attrs.asdict(rows[-1])))
    if not as_json:
        given: dict[str, object] = {
            "model": model,
            "bed": only,
            "prompts": prompts,
            "budgets": budgets,
        }
        if length != LENGTH:
            given["length"] = length
        if entrants != ";".join(FEW):
            given["entrants"] = entrants
        options = shlex.join(
            [f"--{name}={value}" for name, value in given.items() if value]
            + ["--answers"] * answers
        )
        said = note(full, rows) if answers else ""
        typer.echo(table(rows, model or "the needle model", options=options, note=said))


def _entrants(text: str) -> list[str]:
    given = {"all": list(ENTRANTS), "recipes": ["oracle", *RECIPES]}
    names = given.get(text, [each.strip() for each in text.split(";")])
    for name in names:
        if name not in ENTRANTS:
            raise typer.BadParameter(
                f"there is no entrant {name!r}.{suggest(name, ENTRANTS)} Entrants, between "
                f"semicolons: {'; '.join(ENTRANTS)}; or recipes, or all."
            )
    return names


def _positions(text: str) -> list[int]:
    found = [each.strip() for each in text.split(",")]
    for each in found:
        if not each.isdecimal() or int(each) < 1:
            raise typer.BadParameter(
                f"a budget is a number of positions of each head, 1 or more, but not {each!r}. "
                "Write as many as you want between commas: 40,64,128."
            )
    return [int(each) for each in found]


def _chosen(found: Iterable[Bed], only: str | None) -> Iterator[Bed]:
    """Yield all beds, or the one of this name."""
    names = []
    for bed in found:
        names.append(bed.name)
        if only in (None, bed.name):
            yield bed
    if only not in (None, *names):
        raise typer.BadParameter(f"there is no bed {only!r}. Beds: {'; '.join(names)}.")


if __name__ == "__main__":
    typer.run(main)

"""`kvpolicy calibrate`: the smallest budget whose loss is rarely too large, from rows of `eval`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Annotated

import typer

from kvpolicy.commands.writing import check_file, write
from kvpolicy.errors import InvalidValueError, NotExchangeableWarning, shown

app = typer.Typer(add_completion=False)


@app.command()
def calibrate(
    results: Annotated[
        Path, typer.Argument(help="A file of rows: what `kvpolicy eval --output` wrote.")
    ],
    recipe: Annotated[str, typer.Option(help="Whose budgets are compared.")],
    alpha: Annotated[
        float, typer.Option(help="How probable it may be that a prompt loses more than the bound.")
    ] = 0.1,
    bound: Annotated[
        float, typer.Option(help="How much worse than the full cache's a score may be.")
    ] = 0.0,
    task: Annotated[str | None, typer.Option(help="Which task, if there are several.")] = None,
    model: Annotated[str | None, typer.Option(help="Which model, if there are several.")] = None,
    lengths: Annotated[
        str, typer.Option(help="Tokens of prompts to come, such as 512,2048: are they alike?")
    ] = "",
    output: Annotated[
        Path | None, typer.Option(help="Write the policy at that budget here, as JSON.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Find the smallest budget that keeps a promise on your own prompts.

    The promise is that of conformal risk control. The file needs rows of the full cache and of the
    recipe at several budgets. Ends with status 1 if no budget keeps the promise.
    """
    from kvpolicy.evaluation import calibration

    check_file("--output", output)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotExchangeableWarning)  # the notes say it
        found = calibration.calibrate(
            results,
            recipe=recipe,
            alpha=alpha,
            bound=bound,
            task=task,
            model=model,
            lengths=_lengths(lengths),
        )
    typer.echo(json.dumps(found.to_dict(), indent=2) if as_json else str(found))
    if found.described is None:
        raise typer.Exit(1)
    if output is not None:
        write(output, json.dumps(found.described, indent=2) + "\n")
        typer.echo(f"Policy: {output}", err=as_json)


def _lengths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise InvalidValueError(
            f"--lengths are numbers of tokens with commas in between, but are {shown(text)}."
        ) from None

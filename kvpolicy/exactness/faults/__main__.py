"""Print what came of an exception at every line of every operation; fail if an answer is wrong."""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from kvpolicy.exactness.faults.operations import OPERATIONS
from kvpolicy.exactness.faults.sweep import SETTINGS, Outcome, Subject, counts

OUTCOMES: tuple[Outcome, ...] = ("exact", "refused", "wrong", "unclear")


def main(
    step: Annotated[int, typer.Option(help="Inject at one of so many lines.", min=1)] = 1,
    repeated: Annotated[
        bool, typer.Option(help="Inject each time that a line runs, not only first and last.")
    ] = False,
) -> None:
    """Sweep all settings and operations; exit with 1 if an injection was wrong or unclear."""
    torch.set_num_threads(1)
    console, table = Console(), Table("model", "recipe", "storage", "operation", *OUTCOMES)
    total, bad = dict.fromkeys(OUTCOMES, 0), 0
    for setting in SETTINGS:
        for operation in OPERATIONS:
            faults = list(Subject(*setting, operation).faults(step=step, repeated=repeated))
            found = counts(faults)
            table.add_row(*map(str, setting), operation, *(str(found[name]) for name in OUTCOMES))
            for name in OUTCOMES:
                total[name] += found[name]
            for fault in faults:
                if fault.outcome in ("wrong", "unclear"):
                    bad += 1
                    told = f"{fault.outcome}: {setting} {operation} {fault.where} {fault.detail}"
                    console.print(told, markup=False)
    table.add_section()
    table.add_row("all", "", "", "", *(str(total[name]) for name in OUTCOMES))
    console.print(table)
    raise typer.Exit(1 if bad else 0)


if __name__ == "__main__":
    typer.run(main)

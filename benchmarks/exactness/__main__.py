"""The exactness matrix: what every usage of every model differs from what it must equal.

python -m benchmarks.exactness                     measures all tables, and makes docs/exactness.md
python -m benchmarks.exactness --table recipes     measures and prints one
python -m benchmarks.exactness --page              makes the page anew of what was measured last
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.progress import track

from benchmarks.exactness.page import PAGE, counts, read, rendered, write
from benchmarks.exactness.tables import TABLES, measured


def main(
    table: Annotated[list[str] | None, typer.Option(help=f"Only: {', '.join(TABLES)}.")] = None,
    page: Annotated[bool, typer.Option(help="Measure nothing; make the page.")] = False,
    workers: Annotated[int, typer.Option(help="Lines measured at once.")] = 2,
) -> None:
    """Measure, print a line for each model and policy; exit with 1 if a cell is wrong."""
    if page:
        lines = read()
    else:
        unknown = set(table or ()) - set(TABLES)
        if unknown:
            raise typer.BadParameter(
                f"no table {', '.join(unknown)}; there are {', '.join(TABLES)}"
            )
        lines = list(track(measured(table or list(TABLES), workers), "measuring", total=None))
    for line in lines:
        found = counts([line])
        numbers = [cell for cell in line.cells.values() if isinstance(cell, float)]
        worst = f"largest {max(numbers):.0e}" if numbers else ""
        typer.echo(
            f"{line.table:14} {line.subject:34} "
            + (
                line.refused
                or f"{found['exact']} exact, {found['wrong']} WRONG, "
                f"{found['refused']} refused, {found['changed']} changed; {worst}"
            )
        )
    total = counts(lines)
    typer.echo(
        f"{total['exact']} cells exact, {total['wrong']} wrong, {total['refused']} refused; "
        f"{sum(line.refused is not None for line in lines)} model types turned away"
    )
    if not table:
        if not page:
            write(lines)
        PAGE.write_text(rendered(lines))
    raise typer.Exit(1 if total["wrong"] else 0)


if __name__ == "__main__":
    typer.run(main)

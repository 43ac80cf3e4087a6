"""`kvpolicy exactness`: compares evicted caches with full ones that mask what was evicted."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvpolicy.commands.text import read_text
from kvpolicy.errors import InvalidValueError, MissingPackageError, suggest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kvpolicy.exactness.cells import Line

TABLES = ("architectures", "recipes", "attentions", "precisions", "media")

app = typer.Typer(add_completion=False)


@app.command()
def exactness(
    table: Annotated[
        list[str] | None, typer.Option(help=f"Only this table: {', '.join(TABLES)}.")
    ] = None,
    subject: Annotated[
        list[str] | None,
        typer.Option(
            help="Only the lines of this model type, recipe or family, named as on the page. "
            "Other lines of the file --rows stay as they are."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="How many processes measure at once.")] = 2,
    rows: Annotated[
        Path | None, typer.Option(help="Write the measurements to this file, as JSON lines.")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Write a Markdown page to this file.")] = None,
    measured: Annotated[
        Path | None,
        typer.Option("--from", help="Measure nothing; read the measurements of this file."),
    ] = None,
) -> None:
    """Compare evicted caches with full caches that mask the evicted entries.

    The models are tiny and random. Prints a line for each model and policy. Ends with status 1 if a
    cell is wrong. All tables take hours; `--table` measures only one, and `--subject` only one
    line.
    """
    for name in table or ():
        if name not in TABLES:
            raise InvalidValueError(
                f"no table named {name!r}.{suggest(name, TABLES)} Tables: {', '.join(TABLES)}."
            )
    for package in ("hypothesis", "pytest"):
        if find_spec(package) is None:
            raise MissingPackageError(
                f"kvpolicy exactness needs {package}: pip install 'kvpolicy[testing]'."
            )
    from kvpolicy.exactness.page import counts, merged, parsed, rendered, write

    earlier = None if measured is None else parsed(read_text(str(measured), "--from"))
    others: list[Line] = []
    if subject and rows is not None and rows.exists():
        others = parsed(read_text(str(rows), "--rows"))
    lines = []
    for line in _measured(table or TABLES, workers, subject or ()) if earlier is None else earlier:
        typer.echo(_described(line))
        lines.append(line)
    total = counts(lines)
    typer.echo(
        f"{total['exact']} cells are exact, {total['wrong']} wrong, {total['refused']} refused; "
        f"{sum(line.refused is not None for line in lines)} models are refused"
    )
    lines = merged(others, lines)
    if rows is not None:
        write(lines, rows)
    if page is not None:
        page.write_text(rendered(lines), encoding="utf-8")
    raise typer.Exit(1 if total["wrong"] else 0)


def _measured(tables: Sequence[str], workers: int, subjects: Sequence[str]) -> Iterator[Line]:
    """Measure lines of tables, and show a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    from kvpolicy.exactness.tables import measured

    console = Console(stderr=True)
    yield from track(
        measured(tables, workers, subjects),
        "measuring",
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _described(line: Line) -> str:
    from kvpolicy.exactness.page import counts

    start = f"{line.table:14} {line.subject:34} "
    if line.refused is not None:
        return start + line.refused
    found = counts([line])
    numbers = [cell for cell in line.cells.values() if isinstance(cell, float)]
    largest = f"; largest difference {max(numbers):.0e}" if numbers else ""
    return (
        f"{start}{found['exact']} exact, {found['wrong']} WRONG, {found['refused']} refused, "
        f"{found['changed']} not comparable{largest}"
    )

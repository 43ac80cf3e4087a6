"""Prints a comparison to the terminal: a table, its footnotes, and a conclusion."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kvpolicy.evaluation.demo import wording
from kvpolicy.evaluation.pictures.theme import colours
from kvpolicy.evaluation.reports.comparison import Comparison


def print_table(console: Console, comparison: Comparison) -> None:
    """Print a row for each entrant, in the colour of its recipe, and what the columns mean."""
    palette = colours(comparison.names)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in wording.HEADINGS:
        table.add_column(heading, justify="left" if heading == "policy" else "right", no_wrap=True)
    for _, rows in groupby(wording.table(comparison), key=itemgetter(0)):
        for row in rows:
            table.add_row(*map(escape, row), style=palette.get(row[0], "bold"))
        table.add_row()
    console.print(table)
    for note in wording.footnotes(comparison):
        console.print(escape(note), style="dim")


def print_conclusion(console: Console, comparison: Comparison, output: Path) -> None:
    """Print the conclusion, the path of the page, and what to try next."""
    console.print(f"\n[bold]{escape(wording.conclusion(comparison))}[/bold]")
    console.print(f"The page: {escape(str(output))}", soft_wrap=True)
    console.print(f"Next: {escape(wording.next_step(comparison))}", soft_wrap=True)

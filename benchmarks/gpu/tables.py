"""Rows as tables for people: one for each section with a column for each length; then targets."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.gpu.targets import TARGETS
from benchmarks.rows import Row
from benchmarks.targets import target_table, verdicts

TITLES = {
    "gpu.ceilings": "What the device can do",
    "gpu.checks": "Kernels against their references",
    "gpu.kernels": "Kernels",
    "gpu.eviction": "Evicting one layer",
    "gpu.prefill": "Whole prefills",
    "gpu.decode": "Decoding one token",
    "gpu.generation": "`generate`",
}


def show(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print all tables."""
    console = console or Console()
    for benchmark, title in TITLES.items():
        found = [row for row in rows if row.benchmark == benchmark]
        if found:
            console.print(table_of(f"{title}, {found[0].device}", found))
    failures = sorted({row.failure for row in rows if row.failure})
    for failure in failures:
        console.print(f"no number: {failure}", markup=False)
    if on_a_gpu := [row for row in rows if row.device != "cpu"]:
        console.print(target_table("GPU targets", verdicts(TARGETS, on_a_gpu)))


def table_of(title: str, rows: Sequence[Row]) -> Table:
    """Return a table with a line for each thing that was measured, and a column for each shape."""
    columns = sorted({_column(row) for row in rows})
    lines = list(dict.fromkeys(_line(row) for row in rows))
    cells = {(_line(row), _column(row)): text_of(row) for row in rows}
    table = Table(title=title)
    for header in ("", "variant", "unit"):
        table.add_column(header)
    for column in columns:
        table.add_column(_header(column), justify="right")
    for line in lines:
        table.add_row(*line, *(cells.get((line, column), "") for column in columns))
    return table


def _line(row: Row) -> tuple[str, str, str]:
    settings = [str(row.settings[key]) for key in ("model", "form") if key in row.settings]
    against = [f"over {row.against}"] if row.unit in ("ratio", "share") and row.against else []
    dtype = [row.dtype or ""] if row.unit == "bool" else []
    variant = ", ".join([row.variant or "", *settings, *against, *dtype]).strip(", ")
    return row.name, variant, {"s": "ms", "share": "%", "bool": ""}.get(row.unit, row.unit)


def _column(row: Row) -> tuple[int, int]:
    return row.shape.get("B", 1), row.shape.get("L", 0)


def _header(column: tuple[int, int]) -> str:
    batch, length = column
    if not length:
        return "-"
    return f"{length:,}" if batch == 1 else f"{batch} x {length:,}"


def text_of(row: Row) -> str:
    """Return the number of a row as its table shows it; a dash if there is none."""
    if row.value is None:
        return "-"
    if row.unit == "bool":
        return "right" if row.value else "WRONG"
    scale = {"s": 1e3, "share": 1e2}.get(row.unit, 1.0)
    return f"{row.value * scale:,.4g}"

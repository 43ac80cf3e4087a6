"""Writes docs/performance.md and its picture from the rows in benchmarks/results.

python -m benchmarks.page
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.cpu.targets import costs_by_length
from benchmarks.page import cpu, gpu, kvpress, waits
from benchmarks.page.picture import save_growth
from benchmarks.rows import RESULTS, Row, read

DOCS = Path(__file__).parents[2] / "docs"
PAGE, PICTURE = DOCS / "performance.md", DOCS / cpu.PICTURE


def committed_rows() -> list[Row]:
    """Return the rows of all files."""
    return [row for path in sorted(RESULTS.glob("*.jsonl")) for row in read(path)]


def page(rows: Sequence[Row]) -> str:
    """Return the page."""
    return "\n\n".join(_paragraphs(rows)) + "\n"


def _paragraphs(rows: Sequence[Row]) -> Iterator[str]:
    yield "# Performance"
    yield (
        "`python -m benchmarks.page` writes this page from the rows in `benchmarks/results`. To "
        "change a number, measure again."
    )
    yield from cpu.sections(rows)
    yield from kvpress.sections(rows)
    yield from gpu.sections(rows)
    yield from waits.sections(rows)


def main() -> None:
    """Write the page, and the picture if there are costs to draw."""
    rows = committed_rows()
    PAGE.write_text(page(rows))
    costs = costs_by_length(rows)
    if costs:
        dtype = next(row.dtype for row in rows if row.benchmark == "cpu.growth")
        machine = next(row.machine for row in rows if row.benchmark == "cpu.growth")
        save_growth(PICTURE, costs, f"One layer of Llama-3.1-8B's shape, {dtype}, {machine}.")


if __name__ == "__main__":
    main()

"""The tables of launches, waits and copies, and of evictions by the length of the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.rows import Row
from benchmarks.waits.counts import KINDS
from benchmarks.waits.forwards import BATCHES
from benchmarks.waits.lengths import GROWTH, LENGTHS

COLUMNS = [(phase, batch.name) for phase in ("prompt", "token") for batch in BATCHES]


LENGTH_HEADER = [
    "recipe",
    *(f"{length:,}" for length in LENGTHS),
    f"<= {GROWTH:g}x",
    *(f"memory at {length:,}" for length in LENGTHS),
]


def cells(found: Sequence[Row]) -> Iterator[list[str]]:
    """Yield a line of the table for each recipe: launches, waits and copies of each forward."""
    for recipe in dict.fromkeys(row.name for row in found):
        mine = [row for row in found if row.name == recipe]
        yield [recipe, *(_cell(mine, *column) for column in COLUMNS)]


def length_cells(found: Sequence[Row]) -> Iterator[list[str]]:
    """Yield a line for each recipe: launches / waits, their growth, and the extra memory."""
    for recipe in dict.fromkeys(row.name for row in found):
        mine = {row.shape["L"]: row for row in found if row.name == recipe}
        of_length = [mine[length] for length in LENGTHS]
        short, long = (row.value or 0 for row in of_length)
        yield [
            recipe,
            *(f"{row.value:g} / {row.settings['waits']}" for row in of_length),
            f"{long / short:.2f}x, {'met' if long <= GROWTH * short else 'missed'}",
            *(f"{row.settings['memory']:.1%}" for row in of_length),
        ]


def _cell(found: Sequence[Row], phase: str, batch: str) -> str:
    of_kind = {
        row.settings["kind"]: row
        for row in found
        if row.benchmark == f"waits.{phase}" and row.settings["batch"] == batch
    }
    return " / ".join(_number(of_kind[kind]) for kind in KINDS) if of_kind else ""


def _number(row: Row) -> str:
    beside = row.settings["forward"]
    return f"{row.value:g}" + (f" + {beside:g}" if beside else "")

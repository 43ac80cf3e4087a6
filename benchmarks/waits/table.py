"""The table of launches, waits and copies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.rows import Row
from benchmarks.waits.counts import KINDS
from benchmarks.waits.forwards import BATCHES

COLUMNS = [(phase, batch.name) for phase in ("prompt", "token") for batch in BATCHES]


def cells(found: Sequence[Row]) -> Iterator[list[str]]:
    """Yield a line of the table for each recipe: launches, waits and copies of each forward."""
    for recipe in dict.fromkeys(row.name for row in found):
        mine = [row for row in found if row.name == recipe]
        yield [recipe, *(_cell(mine, *column) for column in COLUMNS)]


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

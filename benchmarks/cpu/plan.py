"""What is measured on a CPU, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks import checks
from benchmarks.bench import Cell
from benchmarks.cpu import decode, layer, parts, prompts
from benchmarks.cpu.scale import Scale


def cells(scale: Scale, only: Sequence[str] = ("",)) -> list[Cell[Scale]]:
    """Return the measurements whose keys begin with one of `only`."""
    return [cell for cell in _all(scale) if cell.key.startswith(tuple(only))]


def _all(scale: Scale) -> Iterator[Cell[Scale]]:
    yield from checks.cells()
    yield from layer.cells(scale)
    yield from decode.cells()
    yield from parts.cells()
    yield from prompts.cells()

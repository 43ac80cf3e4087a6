"""The figures of a report as files: each as PNG and as PDF."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvpolicy.budget import written
from kvpolicy.evaluation.reports.costs import COSTS
from kvpolicy.evaluation.reports.curves import by_budget, curves
from kvpolicy.evaluation.reports.grids import grids
from kvpolicy.evaluation.reports.summary import Cell, by_task
from kvpolicy.evaluation.runs.row import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf")
DPI = 200


def save_figures(folder: Path, cells: Sequence[Cell], rows: Sequence[Row]) -> dict[str, list[Path]]:
    """Write every figure into a folder that exists; return the files of each task."""
    files: dict[str, list[Path]] = {}
    stems: set[str] = set()
    for task, name, figure in _figures(cells, rows):
        stem = _unused(_file_name(f"{task} {name}"), stems)
        stems.add(stem)
        for suffix in SUFFIXES:
            file = folder / f"{stem}{suffix}"
            figure.savefig(
                file, dpi=DPI, metadata={"CreationDate": None} if suffix == ".pdf" else None
            )
            files.setdefault(task, []).append(file)
    return files


def _figures(cells: Sequence[Cell], rows: Sequence[Row]) -> Iterator[tuple[str, str, Figure]]:
    from kvpolicy.evaluation.pictures.curve import curve_picture
    from kvpolicy.evaluation.pictures.front import front_picture
    from kvpolicy.evaluation.pictures.heat import heat_picture
    from kvpolicy.evaluation.pictures.marks import marks
    from kvpolicy.evaluation.pictures.quality import quality_picture

    told_apart = marks(cell.entrant for cell in cells)
    for task, found in by_task(cells).items():
        drawn = {"quality": quality_picture(found, told_apart)}
        for cost in COSTS:
            drawn[cost.name] = front_picture(found, cost, told_apart)
        maps = grids(row for row in rows if row.task == task)
        for budget in dict.fromkeys(grid.budget for grid in maps):
            name = "depth" if budget is None else f"depth {written(budget)}"
            drawn[name] = heat_picture([grid for grid in maps if grid.budget == budget])
        for title, group in by_budget(curves(row for row in rows if row.task == task)):
            drawn[f"position{title}"] = curve_picture(group, told_apart)
        for name, figure in drawn.items():
            if figure is not None:
                yield task, name, figure


def _file_name(name: str) -> str:
    """Return a name of a file that every system accepts.

    >>> _file_name("needle(length=96) quality")
    'needle-length-96-quality'
    """
    return re.sub(r"[^\w.]+", "-", name).strip("-.")[:120] or "figure"


def _unused(stem: str, taken: set[str]) -> str:
    numbered = (f"{stem}-{number}" for number in range(2, len(taken) + 3))
    return stem if stem not in taken else next(each for each in numbered if each not in taken)

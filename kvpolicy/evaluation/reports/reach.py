"""Which budget, and how many bytes, each recipe needs for nearly the full cache's score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import attrs

from kvpolicy.budget import Budget, written
from kvpolicy.evaluation.reports import wording
from kvpolicy.evaluation.reports.summary import Cell, by_task
from kvpolicy.evaluation.runs.entrant import FULL
from kvpolicy.huggingface.report import readable_bytes

ENOUGH = 0.95
"""The share of the full cache's score that is enough. A perplexity may be 1 / 0.95 of its."""

NEVER = "none"


@attrs.frozen(kw_only=True)
class Reach:
    """The cheapest of a recipe's measured budgets on a task from which its scores are enough.

    From that budget on every larger one is enough too, so that one lucky budget does not count.
    `budget` is None if not even the largest is enough. `nbytes` is the mean size of the cache when
    the answer began, `share` its share of the full cache's; None where a row has no size.
    """

    task: str
    entrant: str
    budget: Budget | None
    nbytes: float | None = None
    share: float | None = None

    @property
    def text(self) -> str:
        """The budget, the bytes, and their share of the full cache's."""
        if self.budget is None:
            return NEVER
        size = "" if self.nbytes is None else f": {readable_bytes(self.nbytes)}"
        share = "" if self.share is None else f" ({100 * self.share:.0f} %)"
        return f"{written(self.budget)}{size}{share}"


def reaches(cells: Sequence[Cell]) -> list[Reach]:
    """Return what each recipe needs on each task; nothing of tasks without a full cache's score."""
    found = []
    for task, group in by_task(cells).items():
        full = next((cell for cell in group if cell.entrant == FULL), None)
        if full is None or _value(full) is None:
            continue
        names = dict.fromkeys(cell.entrant for cell in group if cell.budget is not None)
        found += [
            _reach(task, name, [cell for cell in group if cell.entrant == name], full)
            for name in names
        ]
    return found


def table(found: Iterable[Reach]) -> tuple[list[str], list[list[str]]]:
    """Return headings and lines: a line for each recipe, a column for each task.

    The recipes that need least come first: by the mean share of bytes, where none is 1.
    """
    texts = {(each.entrant, each.task): each for each in found}
    tasks = list(dict.fromkeys(task for _, task in texts))

    def needed(name: str) -> float:
        own = [texts.get((name, task)) for task in tasks]
        shares = [
            1.0 if each is None or each.budget is None else (each.share or 0.0) for each in own
        ]
        return sum(shares)

    names = sorted(dict.fromkeys(name for name, _ in texts), key=lambda name: (needed(name), name))
    lines = [[name, *(_text(texts.get((name, task))) for task in tasks)] for name in names]
    return ["policy", *tasks], lines


def _text(found: Reach | None) -> str:
    return wording.NOTHING if found is None else found.text


def _reach(task: str, name: str, cells: Sequence[Cell], full: Cell) -> Reach:
    # Bytes order budgets of all kinds, positions and shares alike.
    order = sorted(cells, key=lambda cell: (cell.nbytes or 0.0, cell.title), reverse=True)
    enough: Cell | None = None
    for cell in order:
        if not _is_enough(cell, full):
            break
        enough = cell
    if enough is None:
        return Reach(task=task, entrant=name, budget=None)
    share = enough.nbytes / full.nbytes if enough.nbytes and full.nbytes else None
    return Reach(task=task, entrant=name, budget=enough.budget, nbytes=enough.nbytes, share=share)


def _is_enough(cell: Cell, full: Cell) -> bool:
    mine, best = _value(cell), _value(full)
    if mine is None or best is None:
        return False
    return mine >= ENOUGH * best if cell.larger_is_better else mine * ENOUGH <= best


def _value(cell: Cell) -> float | None:
    value = None if cell.estimate is None else cell.estimate.value
    return value if value is not None and math.isfinite(value) else None

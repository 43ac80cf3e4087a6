"""Which budget, and how many bytes, each recipe needs for nearly the full cache's score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import attrs

from kvpolicy.budget import Budget, order_of, written
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
    """Return what each recipe needs on each task.

    Nothing is said of tasks without a score of the full cache, and of those where it is 0 or less:
    any budget has a share of nothing.
    """
    found = []
    for task, group in by_task(cells).items():
        full = next((cell for cell in group if cell.entrant == FULL), None)
        best = None if full is None else _value(full)
        if full is None or best is None or best <= 0:
            continue
        names = dict.fromkeys(cell.entrant for cell in group if cell.budget is not None)
        found += [
            _reach(task, name, [cell for cell in group if cell.entrant == name], full)
            for name in names
        ]
    return found


def table(found: Iterable[Reach]) -> tuple[list[str], list[list[str]]]:
    """Return headings and lines: a line for each recipe, a column for each task.

    The recipes that need least come first: by the mean share of bytes, where an unknown one is 1.
    """
    texts = {(each.entrant, each.task): each for each in found}
    tasks = list(dict.fromkeys(task for _, task in texts))

    def needed(name: str) -> float:
        own = [texts.get((name, task)) for task in tasks]
        shares = [1.0 if each is None or each.share is None else each.share for each in own]
        return sum(shares)

    names = sorted(dict.fromkeys(name for name, _ in texts), key=lambda name: (needed(name), name))
    lines = [[name, *(_text(texts.get((name, task))) for task in tasks)] for name in names]
    return ["policy", *tasks], lines


def _text(found: Reach | None) -> str:
    return wording.NOTHING if found is None else found.text


def _reach(task: str, name: str, cells: Sequence[Cell], full: Cell) -> Reach:
    # Bytes order budgets of all kinds, positions and shares alike. Without them, and where several
    # hold the same, numbers do.
    sized = all(cell.nbytes is not None for cell in cells)

    def size(cell: Cell) -> tuple[float, tuple[int, float, str]]:
        own = order_of(1 if cell.budget is None else cell.budget)
        return (cell.nbytes or 0.0) if sized else 0.0, own

    order = sorted(cells, key=size, reverse=True)
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

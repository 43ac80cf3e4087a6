"""A page of HTML that needs nothing beside itself: scores by recipe and budget, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from jinja2 import Environment, PackageLoader, StrictUndefined

from kvpolicy.evaluation.reports import wording
from kvpolicy.evaluation.reports.markdown import by_task, columns
from kvpolicy.evaluation.reports.summary import Cell
from kvpolicy.evaluation.runs.entrant import written
from kvpolicy.evaluation.runs.row import Row


def page(cells: Sequence[Cell], *, baseline: str, rows: Sequence[Row]) -> str:
    """Return the page; `rows` say which model and which code the figures are of."""
    environment = Environment(
        loader=PackageLoader("kvpolicy.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("evaluation.html").render(
        tasks=[_task(name, found) for name, found in by_task(cells).items()],
        headings=wording.HEADINGS,
        notes=wording.NOTES,
        baseline=baseline,
        facts=_facts(rows),
    )


@attrs.frozen(kw_only=True)
class _Figure:
    """A score as the page shows it; `strip` places it and its interval between 0 and 1."""

    value: str
    interval: str
    best: bool
    strip: dict[str, float] | None


def _task(name: str, cells: Sequence[Cell]) -> dict[str, Any]:
    found = {(cell.entrant, cell.budget): cell for cell in cells}
    budgets = columns(cells)
    names = list(dict.fromkeys(cell.entrant for cell in cells))
    by_name = {
        each: [found.get((each, None)) or found.get((each, budget)) for budget in budgets]
        for each in names
    }
    best = [_best([by_name[each][at] for each in names]) for at in range(len(budgets))]
    return {
        "name": name,
        "metric": cells[0].metric,
        "larger_is_better": cells[0].larger_is_better,
        "strips": all(map(_fits, cells)),
        "headings": ["policy", *("score" if each is None else written(each) for each in budgets)],
        "matrix": [
            (each, [_figure(cell, best[at]) for at, cell in enumerate(by_name[each])])
            for each in names
        ],
        "lines": [wording.line(cell) for cell in cells],
        "complaints": wording.complaints(cells),
    }


def _best(cells: Sequence[Cell | None]) -> float | None:
    """Return the best score among those that evict; the full cache is no competitor."""
    rivals = [cell for cell in cells if cell is not None and cell.budget is not None]
    values = [cell.estimate.value for cell in rivals if cell.estimate is not None]
    if len(values) < 2:
        return None
    return max(values) if rivals[0].larger_is_better else min(values)


def _figure(cell: Cell | None, best: float | None) -> _Figure | None:
    if cell is None or cell.estimate is None:
        return None
    value, around = cell.estimate
    strip = None
    if around is not None and _fits(cell):
        strip = {
            "left": round(100 * around.low, 1),
            "width": round(100 * (around.high - around.low), 1),
            "at": round(100 * value, 1),
        }
    return _Figure(
        value=wording.figure(value),
        interval=wording.interval(cell.estimate),
        best=cell.budget is not None and value == best,
        strip=strip,
    )


def _fits(cell: Cell) -> bool:
    """Whether a score and its interval lie between 0 and 1."""
    if not cell.larger_is_better or cell.estimate is None:
        return cell.larger_is_better
    value, around = cell.estimate
    return all(0 <= each <= 1 for each in (value, *(around or ())))


def _facts(rows: Sequence[Row]) -> str:
    if not rows:
        return "No rows."
    model = rows[0].run.get("model", {})
    packages = rows[0].run.get("machine", {}).get("packages", {})
    samples = len({(row.task, row.sample) for row in rows})
    versions = ", ".join(f"{name} {number}" for name, number in packages.items() if number)
    questions = " and ".join(sorted({row.question for row in rows}))
    return (
        f"{model.get('name') or model.get('class', 'A model')} ({model.get('dtype', '?')}), "
        f"{samples} samples, question {questions} the evicted text. {versions}."
    )

"""Tables in Markdown: a matrix of recipes and budgets for each task, and all figures below it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kvpolicy.budget import Budget, order_of, written
from kvpolicy.evaluation.reports import wording
from kvpolicy.evaluation.reports.overview import Overall, overview
from kvpolicy.evaluation.reports.reach import reaches
from kvpolicy.evaluation.reports.reach import table as reach_table
from kvpolicy.evaluation.reports.summary import Cell, by_task


def markdown(
    cells: Sequence[Cell],
    *,
    baseline: str,
    title: str = "",
    facts: str = "",
    pictures: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Return the tables of all tasks, and notes on what the columns mean, below title and facts.

    `pictures` has the addresses of the pictures of a task, which stand below its first table.
    """
    lines = [f"# {title}", ""] if title else []
    lines += [facts, ""] if facts else []
    if found := overview(cells):
        lines += [*_overview(found, baseline), ""]
    for task, group in by_task(cells).items():
        lines += [f"## {task}", "", f"Metric: {group[0].metric}. Baseline: {baseline}.", ""]
        lines += _table(*matrix(group))
        for address in (pictures or {}).get(task, ()):
            lines += ["", f"![{_title(address)}]({address})"]
        lines += ["", *_table(wording.HEADINGS, map(wording.line, group)), ""]
        if parts := wording.parts(group):
            lines += [*_table(*parts), ""]
        lines += [f"- {complaint}" for complaint in wording.complaints(group)]
    if needed := reaches(cells):
        lines += [
            "",
            f"## {wording.REACH_TITLE}",
            "",
            wording.REACH,
            "",
            *_table(*reach_table(needed)),
        ]
    return "\n".join([*lines, "", *(f"- {note}" for note in wording.NOTES)]) + "\n"


def columns(budgets: Iterable[Budget | None]) -> list[Budget | None]:
    """Return the budgets in order; [None] where there is only the full cache.

    >>> columns([None, 0.5, 64, 64])
    [64, 0.5]
    """
    found = {budget for budget in budgets if budget is not None}
    return [*sorted(found, key=order_of)] or [None]


def matrix(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """Return headings and lines of scores: a line for each entrant, a column for each budget.

    The full cache's score stands in every column, since it has no budget.
    """
    found = {(cell.entrant, cell.budget): cell for cell in cells}
    budgets = columns(cell.budget for cell in cells)
    lines = [
        [name, *(score(found.get((name, None)) or found.get((name, each))) for each in budgets)]
        for name in dict.fromkeys(cell.entrant for cell in cells)
    ]
    return ["policy", *("score" if each is None else written(each) for each in budgets)], lines


def score(cell: Cell | None) -> str:
    """Write a score with its interval."""
    if cell is None or cell.estimate is None:
        return wording.NOTHING
    around = wording.interval(cell.estimate)
    value = wording.figure(cell.estimate.value)
    return value if around == wording.NOTHING else f"{value} ({around})"


def _title(address: str) -> str:
    """Return what a picture is called where it cannot be seen.

    >>> _title("figures/needles-quality.png")
    'needles quality'
    """
    return address.rpartition("/")[2].rpartition(".")[0].replace("-", " ")


def _overview(found: Sequence[Overall], baseline: str) -> list[str]:
    """Return the table of all tasks together, with its heading."""
    lines = {(line.entrant, line.budget): line for line in found}
    budgets = columns(line.budget for line in found)
    rows = [
        [name, *(_overall(lines.get((name, None)) or lines.get((name, at))) for at in budgets)]
        for name in dict.fromkeys(line.entrant for line in found)
    ]
    headings = ["policy", *("score" if each is None else written(each) for each in budgets)]
    return ["## All tasks", "", wording.overview(baseline), "", *_table(headings, rows)]


def _overall(line: Overall | None) -> str:
    if line is None or line.mean is None:
        return wording.NOTHING
    counts = f" (+{line.better} -{line.worse} of {line.compared})" if line.compared else ""
    return f"{wording.figure(line.mean)}{counts}"


def _table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """Return a table; the first column is words, the others are figures."""
    rule = ["---", *["---:"] * (len(headings) - 1)]
    rows = [headings, rule, *lines]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]

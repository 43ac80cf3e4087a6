"""A page of HTML that needs nothing beside itself: scores by recipe and budget, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kvpolicy.budget import written
from kvpolicy.evaluation.reports import wording
from kvpolicy.evaluation.reports.costs import COSTS, Cost, front
from kvpolicy.evaluation.reports.curves import Curve, by_budget, curves
from kvpolicy.evaluation.reports.grids import grids
from kvpolicy.evaluation.reports.heats import heats
from kvpolicy.evaluation.reports.loading import model_of
from kvpolicy.evaluation.reports.matrix import matrix, overall_matrix
from kvpolicy.evaluation.reports.overview import overview
from kvpolicy.evaluation.reports.published import Published, published
from kvpolicy.evaluation.reports.reach import reaches, table
from kvpolicy.evaluation.reports.rendering import rendered
from kvpolicy.evaluation.reports.summary import Cell, by_task
from kvpolicy.evaluation.runs.row import Row

if TYPE_CHECKING:
    from kvpolicy.evaluation.pictures.marks import Mark


def page(
    cells: Sequence[Cell], *, baseline: str, rows: Sequence[Row], notices: Sequence[str] = ()
) -> str:
    """Return the page; `rows` are what the cells are of, `notices` what a reader must know."""
    from kvpolicy.evaluation.pictures.marks import marks

    told_apart = marks(cell.entrant for cell in cells)
    return rendered(
        "report.html",
        title=title(rows),
        tasks=[
            _task(name, found, [row for row in rows if row.task == name], told_apart)
            for name, found in by_task(cells).items()
        ],
        overview=overall_matrix(overview(cells)),
        reach=_reach(cells),
        published=_published(published(rows)),
        headings=wording.HEADINGS,
        notes=wording.NOTES,
        notices=notices,
        baseline=baseline,
        facts=facts(rows),
    )


def title(rows: Sequence[Row]) -> str:
    """Return the title of a page: which model the rows are of."""
    return f"kvpolicy evaluation: {model_of(rows[0]) if rows else 'no rows'}"


def facts(rows: Sequence[Row]) -> str:
    """Say which model and which versions the rows are of."""
    if not rows:
        return "No rows."
    model = rows[0].run.get("model", {})
    packages = rows[0].run.get("machine", {}).get("packages", {})
    samples = len({(row.task, row.sample) for row in rows})
    versions = ", ".join(f"{name} {number}" for name, number in packages.items() if number)
    questions = " and ".join(sorted({row.question for row in rows}))
    return (
        f"{model_of(rows[0])} ({model.get('dtype', '?')}), {samples} samples, question "
        f"{questions} the evicted text. {versions}."
    )


def _task(
    name: str, cells: Sequence[Cell], rows: Sequence[Row], marks: Mapping[str, Mark]
) -> dict[str, Any]:
    found = grids(rows)
    return {
        "name": name,
        "metric": cells[0].metric,
        "larger_is_better": cells[0].larger_is_better,
        **matrix(cells),
        "pictures": [*_pictures(name, cells, marks), *_curves(name, curves(rows), marks)],
        "heats": heats(found) if found else [],
        "lines": [wording.line(cell) for cell in cells],
        "parts": wording.parts(cells),
        "complaints": wording.complaints(cells),
    }


def _pictures(name: str, cells: Sequence[Cell], marks: Mapping[str, Mark]) -> list[dict[str, str]]:
    from kvpolicy.evaluation.pictures.front import front_picture
    from kvpolicy.evaluation.pictures.inline import PAGE, inline
    from kvpolicy.evaluation.pictures.quality import quality_picture

    metric = cells[0].metric
    drawn = [
        (
            quality_picture(cells, marks, PAGE),
            f"{metric} over budget",
            "A line for each recipe; upright strokes are 95 % intervals. Dotted: the full cache.",
        )
    ]
    for cost in COSTS:
        title = f"{metric} over {cost.title}"
        drawn.append((front_picture(cells, cost, marks, PAGE), title, _front(cells, cost)))
    return [
        {"svg": inline(figure, f"{name}: {title}."), "title": title, "caption": caption}
        for figure, title, caption in drawn
        if figure is not None
    ]


def _curves(name: str, found: Sequence[Curve], marks: Mapping[str, Mark]) -> list[dict[str, str]]:
    from kvpolicy.evaluation.pictures.curve import curve_picture
    from kvpolicy.evaluation.pictures.inline import PAGE, inline

    shown = []
    for title, group in by_budget(found):
        figure = curve_picture(group, marks, PAGE)
        title = f"perplexity over position{title}"
        if figure is not None:
            svg, caption = (
                inline(figure, f"{name}: {title}."),
                "Each point: a stretch of the texts.",
            )
            shown.append({"svg": svg, "title": title, "caption": caption})
    return shown


def _reach(cells: Sequence[Cell]) -> dict[str, Any] | None:
    found = reaches(cells)
    if not found:
        return None
    headings, lines = table(found)
    return {
        "title": wording.REACH_TITLE,
        "hint": wording.REACH,
        "headings": headings,
        "lines": lines,
    }


def _front(cells: Sequence[Cell], cost: Cost) -> str:
    best = front(cost.points(cells), larger_is_better=cells[0].larger_is_better)
    named = [
        f"{each.cell.title} ({cost.write(each.cost)}, {wording.figure(each.score)})"
        for each in best
    ]
    return (
        "The line joins what nothing beats at that cost. The cheapest first: "
        f"{', '.join(named)}. All others are pale."
    )


def _published(found: Sequence[Published]) -> dict[str, Any] | None:
    if not found:
        return None
    return {
        "lines": [
            (
                each.benchmark,
                each.entrant,
                wording.NOTHING if each.budget is None else written(each.budget),
                f"{each.ours:.2f}",
                f"{each.theirs:.2f}",
                f"{each.ours - each.theirs:+.2f}",
            )
            for each in found
        ],
        "sources": list(dict.fromkeys(each.source for each in found)),
    }

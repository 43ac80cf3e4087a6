"""`kvpolicy report`: a page, figures and tables of what `kvpolicy eval` wrote."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from kvpolicy.commands.writing import check_file, check_folder, write

if TYPE_CHECKING:
    from kvpolicy.evaluation.reports.loading import Loaded
    from kvpolicy.evaluation.reports.summary import Cell

app = typer.Typer(add_completion=False)


@app.command()
def report(
    results: Annotated[
        list[Path], typer.Argument(help="Files of rows: what `kvpolicy eval --output` wrote.")
    ],
    page: Annotated[
        Path | None,
        typer.Option(help="Write a page of HTML that needs nothing beside itself."),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Write each figure as PNG and PDF into this folder.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write tables in Markdown.")] = None,
    latex: Annotated[
        Path | None, typer.Option(help="Write tables in LaTeX, for the package booktabs.")
    ] = None,
    baseline: Annotated[str, typer.Option(help="Whom the others are compared with.")] = "full",
    model: Annotated[
        str | None, typer.Option(help="Which model, if there are rows of several.")
    ] = None,
) -> None:
    """Write pages, figures and tables of results.

    Nothing is run, and no file of results changes.

    Without any of the options it writes kvpolicy-report.html.
    """
    from kvpolicy.evaluation.reports.loading import load
    from kvpolicy.evaluation.reports.summary import summary

    if not any((page, figures, markdown, latex)):
        page = Path("kvpolicy-report.html")
    for option, file in (("--page", page), ("--markdown", markdown), ("--latex", latex)):
        check_file(option, file)
    if figures is not None:
        check_folder("--figures", figures)
    loaded = load(results, model=model)
    cells = summary(loaded.rows, baseline=baseline)
    for note in loaded.notes:
        typer.echo(note, err=True)
    tasks = len({cell.task for cell in cells})
    typer.echo(f"{len(loaded.rows):,} rows of {tasks} task{'' if tasks == 1 else 's'}")
    saved: dict[str, list[Path]] = {}
    if figures is not None:
        from kvpolicy.evaluation.reports.figures import save_figures

        saved = save_figures(figures, cells, loaded.rows)
        typer.echo(f"Figures: {sum(map(len, saved.values()))} files in {figures}")
    for title, file, make in _texts(loaded, cells, baseline, page, markdown, latex, saved):
        write(file, make())
        typer.echo(f"{title}: {file}")


def _texts(
    loaded: Loaded,
    cells: Sequence[Cell],
    baseline: str,
    page: Path | None,
    markdown: Path | None,
    latex: Path | None,
    figures: Mapping[str, Sequence[Path]],
) -> list[tuple[str, Path, Callable[[], str]]]:
    """Return what is asked for: its title, its file, and what makes it."""
    from kvpolicy.evaluation.reports.latex import latex as in_latex
    from kvpolicy.evaluation.reports.markdown import markdown as in_markdown
    from kvpolicy.evaluation.reports.page import facts
    from kvpolicy.evaluation.reports.page import page as in_html
    from kvpolicy.evaluation.reports.page import title as title_of

    rows = loaded.rows
    wanted: list[tuple[str, Path | None, Callable[[], str]]] = [
        ("Page", page, lambda: in_html(cells, baseline=baseline, rows=rows, notices=loaded.notes)),
        (
            "Markdown",
            markdown,
            lambda: in_markdown(
                cells,
                baseline=baseline,
                title=title_of(rows),
                facts=facts(rows),
                pictures=_addresses(figures, beside=markdown),
            ),
        ),
        ("LaTeX", latex, lambda: in_latex(cells, baseline=baseline)),
    ]
    return [(title, file, make) for title, file, make in wanted if file is not None]


def _addresses(
    figures: Mapping[str, Sequence[Path]], *, beside: Path | None
) -> dict[str, list[str]]:
    """Return the pictures of each task, as a page in Markdown refers to them."""
    folder = Path.cwd() if beside is None else beside.resolve().parent
    return {
        task: [
            quote(Path(os.path.relpath(file.resolve(), folder)).as_posix())
            for file in files
            if file.suffix == ".png"
        ]
        for task, files in figures.items()
    }
